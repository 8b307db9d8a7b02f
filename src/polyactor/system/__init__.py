"""The operating system and the machine of a run.

* `machine`: memory, threads and shared memory of this process.
* `host`: names and versions of hardware and software, and the memory that processes use.
* `forkserver`: starts worker processes quickly.
* `streams`, `console`: printing that needs no terminal, and no encoding of UTF-8.
* `notices`: lines about what is waited for, so that no command is silent for long.
* `deadline`: deadlines of what is asked of environments.
* `process_state`: random streams, signal handlers and switches of this process, which are put back.
* `interpreter`: calls that hold the interpreter for seconds.
* `failpoints`: makes a process fail at a chosen place, for tests.
"""
