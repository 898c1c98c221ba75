"""One model on many processes: what each of them holds, and what travels between them."""
