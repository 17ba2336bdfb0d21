"""`python -m docs.families`: which families of transformers work, by a trial of each, as families.md."""
