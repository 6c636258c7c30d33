"""Programs for working on the project: set-up, checks of the surroundings, generated reference pages.

Everything that set-up needs imports the standard library alone, since it runs before anything is installed.
"""
