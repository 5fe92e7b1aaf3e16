"""The proof: readers are fresh and writes are kept, whatever happens; run by `make prove`.

Real processes write and read while faults hit them, the servers and the connections. Each notes
what it did and saw (`history`), and afterwards a checker looks for an order of all operations that
explains it (`checker`, `linearizability`). docs/proof.rst says what is proved of which backend.
"""
