"""From a text to token ids: the words that a person would say, the parts that are spoken one after another, the tokenizer.

text -> spoken (numbers, dates, Markdown as words) -> nfc (one form a character) -> split, parts (sentences) -> tokenizer -> ids [T] int32
"""
