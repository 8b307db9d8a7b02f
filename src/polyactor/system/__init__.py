"""The operating system and the machine of a run.

* `machine`: memory, threads and shared memory of this process.
* `host`: names and versions of hardware and software, and the memory that processes use.
* `forkserver`: starts worker processes quickly.
* `streams`, `console`: printing that needs no terminal, and no encoding of UTF-8.
* `interpreter`: calls that hold the interpreter for seconds.
* `failpoints`: makes a process fail at a chosen place, for tests.
"""
