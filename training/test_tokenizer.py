"""Table of tokenizer cases: run with `python3 training/test_tokenizer.py`.

The C++ tokenizer is tested against the same table. No sentence of a data set is used.
"""

import unittest

from tokenizer import PAD_ID, UNKNOWN_ID, encode, tokenize

# (name, text, tokens joined by one space), text_normalization "reviews"
REVIEWS_CASES = [
    ("empty", "", ""),
    ("white space only", " \t\r\n\u00a0\u3000 ", ""),
    ("plain", "A quiet film", "a quiet film"),
    ("final dot", "Nice.", "nice ."),
    ("ellipsis character", "wait\u2026 what?", "wait . . . what ?"),
    ("ellipsis of dots", "wait... what?", "wait . . . what ?"),
    ("curly apostrophe", "It\u2019s fine", "it ' s fine"),
    ("modifier apostrophe and prime", "it\u02bcs it\u2032s", "it ' s it ' s"),
    ("curly double quotes", "\u201cfun\u201d", "fun"),
    ("double prime and guillemets", "\u2033a\u2033 \u00abb\u00bb", "a b"),
    ("low quotes", "\u201afun\u2018 \u201efun\u201c", "' fun ' fun"),
    ("en dash", "good\u2013bad", "good bad"),
    ("em dash and minus", "good\u2014bad \u22121", "good bad 1"),
    ("hyphen", "bug-eyed, well-made", "bug eyed , well made"),
    ("double hyphen", "good -- not great", "good not great"),
    ("zero width characters", "so\u200bft\u00adly \ufeffdone", "softly done"),
    ("thin and ideographic space", "a\u2009b\u3000c\u202fd\u205fe", "a b c d e"),
    ("other white space", "a\u0085b\u2028c\u1680d\x1fe", "a b c d e"),
    ("treebank double quotes", "a `` big '' idea", "a big idea"),
    ("treebank single quotes", "a ` big ' idea", "a ' big ' idea"),
    ("three apostrophes", "'''a", "' a"),
    ("treebank brackets", "fun -lrb- really -RRB- .", "fun ( really ) ."),
    ("bracket words inside a word", "x-lrb-y", "x lrb y"),
    ("typed brackets", "fun (really).", "fun ( really ) ."),
    ("n't glued", "they wo n't go", "they won ' t go"),
    ("n't typed", "they won't go", "they won ' t go"),
    ("n't capital", "It IS N'T", "it isn ' t"),
    ("n't first", "n't bad", "n ' t bad"),
    ("n't curly", "is n\u2019t", "isn ' t"),
    ("n't twice", "is n't n't", "isn ' tn ' t"),
    ("n't followed by a dot is no word of its own", "is n't.", "is n ' t ."),
    ("pairs", "gon na wan na got ta gim me lem me can not", "gonna wanna gotta gimme lemme cannot"),
    ("pair across lines", "can\nnot", "cannot"),
    ("pair then n't", "gon na n't", "gonnan ' t"),
    ("no pair", "can, not", "can , not"),
    ("hyphen is no pair", "can-not", "can not"),
    ("clitics", "I 've he 'll she 'd we 're I 'm", "i ' ve he ' ll she ' d we ' re i ' m"),
    ("clitics typed", "I've he'll she'd we're I'm", "i ' ve he ' ll she ' d we ' re i ' m"),
    ("semicolon and colon", "well; see: this", "well see this"),
    ("line break tag", "one<br />two<BR />three", "one two three"),
    ("number with a dot and a comma", "3.5 of 1,000", "3 . 5 of 1 , 000"),
    ("upper case beyond ASCII", "CAF\u00c9 \u0416\u0418\u0417\u041d\u042c", "caf\u00e9 \u0436\u0438\u0437\u043d\u044c"),
    ("final sigma", "\u039f\u03a3", "\u03bf\u03c3"),
    ("dotted capital I stays", "\u0130x", "\u0130x"),
    ("capital sharp s", "\u1e9e", "\u00df"),
    ("emoji", "great \U0001f600!", "great \U0001f600 !"),
    ("punctuation run", "what?!", "what ? !"),
]

# (name, text, tokens joined by one space), text_normalization "none"
BASIC_ENGLISH_CASES = [
    ("apostrophe", "Don't", "don ' t"),
    ("quotes vanish", 'a "b"c', "a bc"),
    ("hyphen kept", "well-made", "well-made"),
    ("treebank kept", "do n't -lrb- `` x ''", "do n ' t -lrb- `` x ' '"),
    ("curly kept", "it\u2019s", "it\u2019s"),
    ("no-break space splits", "a\u00a0b", "a b"),
    ("zero width stays", "a\u200bb", "a\u200bb"),
    ("all marks", "a.b,c(d)e!f?g;h:i", "a . b , c ( d ) e ! f ? g h i"),
]

# (as people type it, as the Penn Treebank writes it)
SAME_TOKENS = [
    ("It's not \"art\", but it won't bore you.", "it 's not `` art '' , but it wo n't bore you ."),
    ("I can't, I cannot, I couldn\u2019t!", "i ca n't , i can not , i could n't !"),
    ("A slow-burning (if odd) tale...", "a slow burning -lrb- if odd -rrb- tale ..."),
    ("The kids' \u2018cool\u2019 dad is gonna sing", "the kids ' ` cool ' dad is gon na sing"),
    ("They\u2019re '70s people, she'd said", "they 're '70s people , she 'd said"),
]


class TokenizerTest(unittest.TestCase):
    def test_reviews(self):
        for name, text, expected in REVIEWS_CASES:
            with self.subTest(name):
                self.assertEqual(tokenize(text, "reviews"), expected.split(" ") if expected else [])

    def test_basic_english(self):
        for name, text, expected in BASIC_ENGLISH_CASES:
            with self.subTest(name):
                self.assertEqual(tokenize(text, "none"), expected.split(" "))

    def test_typed_and_treebank_forms_agree(self):
        for typed, treebank in SAME_TOKENS:
            with self.subTest(typed):
                self.assertEqual(tokenize(typed), tokenize(treebank))

    def test_unknown_normalization_is_refused(self):
        with self.assertRaises(ValueError):
            tokenize("x", "twitter")

    def test_encode(self):
        token_ids = {"a": 2, "b": 3}
        self.assertEqual(encode(["a", "x", "b"], token_ids, 5), [2, UNKNOWN_ID, 3, PAD_ID, PAD_ID])
        self.assertEqual(encode(["a", "b", "a"], token_ids, 2), [2, 3])
        self.assertEqual(encode([], token_ids, 2), [PAD_ID, PAD_ID])


if __name__ == "__main__":
    unittest.main()
