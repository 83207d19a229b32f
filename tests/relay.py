"""A slow network line: forwards data after a delay of some milliseconds.

python relay.py LISTEN_HOST:PORT TARGET_HOST:PORT DELAY_MS
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from functools import partial


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    while data := await reader.read(65_536):
        # This keeps the order: the loop runs calls due at the same moment as they were scheduled.
        loop.call_later(delay_s, writer.write, data)
    loop.call_later(delay_s, writer.close)


async def _serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    target: tuple[str, int],
    delay_s: float,
) -> None:
    far_reader, far_writer = await asyncio.open_connection(*target)
    await asyncio.gather(_pump(reader, far_writer, delay_s), _pump(far_reader, writer, delay_s))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _exact_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def main(listen: str, target: str, delay_ms: str) -> None:
    serve = partial(_serve, target=_address(target), delay_s=float(delay_ms) / 1000)
    server = await asyncio.start_server(serve, *_address(listen))
    print("ready", flush=True)  # noqa: T201 - its log
    await server.serve_forever()


if __name__ == "__main__":
    # select() has exact timeouts; epoll rounds to whole milliseconds.
    with asyncio.Runner(loop_factory=_exact_loop) as runner:
        runner.run(main(*sys.argv[1:]))
