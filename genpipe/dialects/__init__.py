"""Other programs' spellings of what a request says, read and written."""
