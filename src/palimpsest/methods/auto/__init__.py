"""`auto`: tries what measures best, tests every fact, goes further where one fails and back where it damages."""
