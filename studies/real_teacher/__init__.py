"""Which objective helps a student that is a language model, beside a real teacher: `python -m studies.real_teacher`."""
