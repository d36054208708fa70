"""Work for the tests of `benchmarks.fresh_process`; it imports nothing, so that its memory is what it says."""

import time


def hold(num_bytes, seconds=0.0):
    """Hold memory that is written to, for a while; gives back how much it was."""

    def work():
        block = bytearray(b"x") * num_bytes if num_bytes >= 0 else bytearray(num_bytes)
        time.sleep(seconds)
        return len(block)

    return work
