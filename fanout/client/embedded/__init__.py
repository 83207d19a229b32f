"""A fleet without a broker: this user's own server, which keeps its state, and a worker.

``state`` is the folder, ``keeper`` the process that keeps the server, ``server`` how a client uses
it, ``databases`` whose runs are where, ``fleet`` a client's worker on a database of its own, and
``guard`` the process that keeps the worker. Nothing is imported here, as both processes start
by this package.
"""
