"""Actors of your own under the same supervisor: a connection, and a feed that stands on it. The connection breaks."""

from nitinol import ChildSpec, Runtime, SupervisorSpec, ThreadActor


class Connection(ThreadActor):
    """Something that breaks; a real one would hold a socket."""

    def on_receive(self, message: str) -> str:
        if message == "cut":
            raise ConnectionResetError("the other side is gone")
        return message.upper()


class Feed(ThreadActor):
    """Something that is worth nothing without its connection."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.seen = source, 0

    def on_receive(self, message: str) -> str:
        self.seen += 1
        return f"{self.source}: {message} is number {self.seen}"


line = SupervisorSpec(
    "line",
    [
        ChildSpec("connection", start=Connection.start, shutdown=1.0),
        ChildSpec("feed", start=lambda: Feed.start("wire"), shutdown=1.0),
    ],
    strategy="rest_for_one",  # who was started after the one that crashed is restarted with it
)

with Runtime() as rt:
    crew = rt.supervise(line)
    connection, feed = crew.child("connection"), crew.child("feed")
    print(feed.ask("this", timeout=5))
    print(feed.ask("that", timeout=5))

    down = feed.watch()
    connection.tell("cut")
    print("the feed went down:", down.result(timeout=5).reason)

    feed.ready(timeout=5)
    print(feed.ask("again", timeout=5))

    for node in rt.tree().children[-1].children[0].children:
        print(f"{node.id}: {node.state}, {node.restarts} restart, because: {node.last_reason}")
