"""What owns a thread, a mailbox or a timeout: actors on Pykka, their supervisor, the bus, the gateway and the pool."""
