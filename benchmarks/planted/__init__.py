"""A small model, texts and features made by hand, so that it is known what each feature fires on."""
