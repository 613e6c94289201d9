"""The programs that go along with an export. They stand alone there: nothing here imports selfdet but other parts."""
