"""Composed sound scenes: captions and answers are computed from the record, so they can be checked."""
