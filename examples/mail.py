"""A real SMTP server on 127.0.0.1. Like any other, it sometimes refuses a mail."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from email import message_from_bytes
from zlib import crc32

from aiosmtpd.smtp import SMTP, Envelope, Session


class MailServer:
    """Counts the mails that it delivered and those that it refused, by order number."""

    def __init__(self) -> None:
        self.port = 0
        self.delivered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Accept a mail. For about every sixth order, temporarily refuse the first mail."""
        content = envelope.content
        assert isinstance(content, bytes)
        number = str(message_from_bytes(content)["Message-ID"]).strip("<>").partition("@")[0]
        await asyncio.sleep(0.04)  # mail servers are slow
        if crc32(number.encode()) % 6 == 0 and not self.refused[number]:
            self.refused[number] += 1
            return "451 4.3.2 The server is busy, please try again later"
        self.delivered[number] += 1
        return "250 2.0.0 Taken"


@contextmanager
def mail_server() -> Generator[MailServer]:
    """Serve on a free port, in a thread, during the block."""
    mail = MailServer()
    started: Future[asyncio.AbstractEventLoop] = Future()
    ending = asyncio.Event()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(mail, hostname="localhost", loop=loop), "127.0.0.1", 0)
        mail.port = server.sockets[0].getsockname()[1]
        started.set_result(loop)
        await ending.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="mail server", daemon=True)
    thread.start()
    loop = started.result(timeout=10)
    try:
        yield mail
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
