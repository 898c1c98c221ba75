"""How far an oracle can be trusted: agreement, reliability, what moves it beside quality, and who can talk to it."""
