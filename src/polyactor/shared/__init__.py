"""What the processes of a run share: counters, signs of life, queues, locks, room for gradients."""
