"""A far network on loopback: forwards TCP connections, each piece after a delay. Prints the port it listens on.

  delay.py HOST:PORT ROUND_TRIP_MS
"""
import asyncio, sys


async def pump(reader, writer, delay):
    """Reads go on while earlier pieces are on the wire."""
    pieces = asyncio.Queue(maxsize=4096)
    loop = asyncio.get_running_loop()

    async def deliver():
        while True:
            at, piece = await pieces.get()
            await asyncio.sleep(max(0, at - loop.time()))
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    delivery = asyncio.create_task(deliver())
    try:
        while True:
            piece = await reader.read(1 << 18)
            await pieces.put((loop.time() + delay, piece))
            if not piece:
                break
    except ConnectionError:
        await pieces.put((loop.time(), b""))
    try:
        await delivery
    except (ConnectionError, OSError):
        pass


async def main(target, delay):
    host, port = target.rsplit(":", 1)

    async def serve(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer, delay), pump(far_reader, writer, delay))
        writer.close()
        far_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) / 2000))
