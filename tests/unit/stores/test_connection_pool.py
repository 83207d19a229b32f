"""The pool that hands out connections fast, with a server of the test."""

import os
import socket
import threading

import pytest
import redis

from fanout.stores.connection import connect
from fanout.stores.connection_pool import FastPool


class _Server:
    """Answers each command with ``+OK``, and keeps the connections that it was asked for."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.clients = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        try:
            while data := client.recv(65_536):
                client.sendall(b"+OK\r\n" * data.count(b"*"))
        except OSError:
            return

    def close(self):
        self._listener.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def server():
    server = _Server()
    yield server
    server.close()


@pytest.fixture
def pool(server):
    pool = FastPool(host="127.0.0.1", port=server.port, socket_timeout=5, protocol=2)
    yield pool
    pool.disconnect()


def ask(pool):
    connection = pool.get_connection()
    try:
        connection.send_command("PING")
        return connection.read_response()
    finally:
        pool.release(connection)


def test_a_connection_that_was_given_back_is_handed_out_again(pool, server):
    first = pool.get_connection()
    pool.release(first)
    assert pool.get_connection() is first
    assert pool.get_connection() is not first
    assert len(server.clients) == 2


def test_a_connection_that_its_server_has_closed_is_made_again(pool, server):
    assert ask(pool) == b"OK"
    server.clients[0].shutdown(socket.SHUT_RDWR)
    assert ask(pool) == b"OK"
    assert len(server.clients) == 2


def test_what_is_left_of_an_earlier_reply_is_no_reply_to_the_next_command(pool, server):
    assert ask(pool) == b"OK"
    connection = pool.get_connection()
    connection.send_command("PING")
    assert connection.can_read(timeout=60)
    pool.release(connection)
    server.clients[0].sendall(b"+LEFT\r\n")
    assert ask(pool) == b"OK"
    assert len(server.clients) == 2


def test_a_connection_of_another_pool_or_one_given_back_twice_is_not_taken(pool, server):
    connection = pool.get_connection()
    pool.release(connection)
    pool.release(connection)
    pool.release(redis.Connection(host="127.0.0.1", port=server.port))
    assert pool.get_connection() is connection
    assert pool.get_connection() is not connection


def test_a_connection_that_has_to_be_made_again_is_closed_when_it_is_given_back(pool):
    ask(pool)
    connection = pool.get_connection()
    connection.mark_for_reconnect()
    pool.release(connection)
    assert not connection.is_connected
    assert ask(pool) == b"OK"


def test_a_failed_look_at_a_connection_leaves_it_in_the_pool(pool, monkeypatch):
    connection = pool.get_connection()
    pool.release(connection)

    def interrupted(**_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(connection, "can_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.get_connection()
    assert pool.get_connection() is connection


def test_a_child_process_uses_none_of_its_parents_connections(pool, monkeypatch):
    connection = pool.get_connection()
    pool.release(connection)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert pool.get_connection() is not connection


def test_the_clients_of_a_server_have_this_pool(server):
    with connect(f"redis://127.0.0.1:{server.port}/0?protocol=2") as client:
        assert type(client.connection_pool) is FastPool
        assert client.auto_close_connection_pool
