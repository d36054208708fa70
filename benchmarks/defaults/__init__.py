"""The default, with nothing chosen, beside what a user would have done otherwise."""
