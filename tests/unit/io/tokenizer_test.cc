#include "io/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <thread>

#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "unit/io/allocation_counter.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

using testing::allocated_bytes;

const Tokenizer kReviews(TextNormalization::reviews);
const Tokenizer kBasic(TextNormalization::none);

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

struct Case {
  const char* name;
  const char* text;
  const char* words;  // joined by one space
};

// The cases of training/test_tokenizer.py, whose Python twin prepares the training data, and more.
constexpr Case kReviewsCases[] = {
    {"empty", "", ""},
    {"white space only", " \t\r\n\u00a0\u3000 ", ""},
    {"plain", "A quiet film", "a quiet film"},
    {"final dot", "Nice.", "nice ."},
    {"ellipsis character", "wait\u2026 what?", "wait . . . what ?"},
    {"ellipsis of dots", "wait... what?", "wait . . . what ?"},
    {"curly apostrophe", "It\u2019s fine", "it ' s fine"},
    {"modifier apostrophe and prime", "it\u02bcs it\u2032s", "it ' s it ' s"},
    {"curly double quotes", "\u201cfun\u201d", "fun"},
    {"double prime and guillemets", "\u2033a\u2033 \u00abb\u00bb", "a b"},
    {"low quotes", "\u201afun\u2018 \u201efun\u201c", "' fun ' fun"},
    {"en dash", "good\u2013bad", "good bad"},
    {"em dash and minus", "good\u2014bad \u22121", "good bad 1"},
    {"every dash", "a\u2010b\u2011c\u2012d\u2015e", "a b c d e"},
    {"hyphen", "bug-eyed, well-made", "bug eyed , well made"},
    {"double hyphen", "good -- not great", "good not great"},
    {"hyphens only", "- -- ---", ""},
    {"zero width characters", "so\u200bft\u00adly \ufeffdone", "softly done"},
    {"thin and ideographic space", "a\u2009b\u3000c\u202fd\u205fe", "a b c d e"},
    {"other white space", "a\u0085b\u2028c\u1680d\x1fg", "a b c d g"},
    {"treebank double quotes", "a `` big '' idea", "a big idea"},
    {"treebank single quotes", "a ` big ' idea", "a ' big ' idea"},
    {"three apostrophes", "'''a", "' a"},
    {"mixed quotes make no double quote", "`'a '`b", "' ' a ' ' b"},
    {"quotes around a zero width character", "'\u200b'a", "a"},
    {"treebank brackets", "fun -lrb- really -RRB- .", "fun ( really ) ."},
    {"bracket words inside a word", "x-lrb-y", "x lrb y"},
    {"typed brackets", "fun (really).", "fun ( really ) ."},
    {"n't glued", "they wo n't go", "they won ' t go"},
    {"n't typed", "they won't go", "they won ' t go"},
    {"n't capital", "It IS N'T", "it isn ' t"},
    {"n't first", "n't bad", "n ' t bad"},
    {"n't curly", "is n\u2019t", "isn ' t"},
    {"n't with a backtick", "is n`t", "isn ' t"},
    {"n't twice", "is n't n't", "isn ' tn ' t"},
    {"n't followed by a dot is no word of its own", "is n't.", "is n ' t ."},
    {"pairs", "gon na wan na got ta gim me lem me can not", "gonna wanna gotta gimme lemme cannot"},
    {"pair across lines", "can\nnot", "cannot"},
    {"pair then n't", "gon na n't", "gonnan ' t"},
    {"pair after a bracket", "-lrb- can not", "( cannot"},
    {"no pair", "can, not", "can , not"},
    {"the second half alone", "na ta me not", "na ta me not"},
    {"half pairs", "wan ta gon me lem na", "wan ta gon me lem na"},
    {"hyphen is no pair", "can-not", "can not"},
    {"clitics", "I 've he 'll she 'd we 're I 'm", "i ' ve he ' ll she ' d we ' re i ' m"},
    {"clitics typed", "I've he'll she'd we're I'm", "i ' ve he ' ll she ' d we ' re i ' m"},
    {"semicolon and colon", "well; see: this", "well see this"},
    {"line break tag", "one<br />two<BR />three", "one two three"},
    {"line break tag across spaces", "one<br\t />two", "one two"},
    {"almost a line break tag", "one<br/>two<br / >", "one<br/>two<br / >"},
    {"angle brackets", "<<br /><b", "< <b"},
    {"number with a dot and a comma", "3.5 of 1,000", "3 . 5 of 1 , 000"},
    {"upper case beyond ASCII", "CAF\u00c9 \u0416\u0418\u0417\u041d\u042c", "caf\u00e9 \u0436\u0438\u0437\u043d\u044c"},
    {"lower case longer in UTF-8", "\u023a\u023e", "\u2c65\u2c66"},
    {"lower case shorter in UTF-8", "\u212a\u1e9e", "k\u00df"},
    {"final sigma", "\u039f\u03a3", "\u03bf\u03c3"},
    {"dotted capital I stays", "\u0130x", "\u0130x"},
    {"combining marks stay", "e\u0301 n\u0303", "e\u0301 n\u0303"},
    {"emoji", "great \U0001f600!", "great \U0001f600 !"},
    {"emoji of several code points", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
     "\U0001f468\u200d\U0001f469\u200d\U0001f467"},
    {"punctuation run", "what?!", "what ? !"},
    {"all marks", "!?.,()", "! ? . , ( )"},
    {"control characters stay", "a\x01g\x7f", "a\x01g\x7f"},
};

constexpr Case kBasicCases[] = {
    {"apostrophe", "Don't", "don ' t"},
    {"quotes vanish", "a \"b\"c", "a bc"},
    {"quotes only", "\" \"\"", ""},
    {"hyphen kept", "well-made", "well-made"},
    {"treebank kept", "do n't -lrb- `` x ''", "do n ' t -lrb- `` x ' '"},
    {"curly kept", "it\u2019s", "it\u2019s"},
    {"no-break space splits", "a\u00a0b", "a b"},
    {"zero width stays", "a\u200bb", "a\u200bb"},
    {"all marks", "a.b,c(d)e!f?g;h:i", "a . b , c ( d ) e ! f ? g h i"},
    {"line break tag", "a<br />b<BR />c", "a b c"},
    {"line break tag with quotes", "a<b\"r />c", "a c"},
    {"line break tag with a tab", "a<br\t/>c", "a<br />c"},
    {"marks break a tag", "a<br .>c", "a<br . >c"},
    {"digits", "10 1.5 2,000 '07", "10 1 . 5 2 , 000 ' 07"},
};

TEST(Tokenizer, ReviewsTable) {
  for (const Case& c : kReviewsCases) EXPECT_EQ(joined(kReviews.tokenize(c.text)), c.words) << c.name;
}

TEST(Tokenizer, BasicEnglishTable) {
  for (const Case& c : kBasicCases) EXPECT_EQ(joined(kBasic.tokenize(c.text)), c.words) << c.name;
}

TEST(Tokenizer, TypedAndTreebankFormsGiveTheSameWords) {
  constexpr std::pair<const char*, const char*> kPairs[] = {
      {"It's not \"art\", but it won't bore you.", "it 's not `` art '' , but it wo n't bore you ."},
      {"I can't, I cannot, I couldn\u2019t!", "i ca n't , i can not , i could n't !"},
      {"A slow-burning (if odd) tale...", "a slow burning -lrb- if odd -rrb- tale ..."},
      {"The kids' \u2018cool\u2019 dad is gonna sing", "the kids ' ` cool ' dad is gon na sing"},
      {"They\u2019re '70s people, she'd said", "they 're '70s people , she 'd said"},
      {"Gimme more; I wanna see it \u2014 I've gotta!", "gim me more ; i wan na see it -- i 've got ta !"},
      {"Lemme say: it isn't, wasn't, won't be \u201cfun\u201d.",
       "lem me say : it is n't , was n't , wo n't be `` fun '' ."},
      {"He\u2019ll\u00a0do", "he 'll do"},
  };
  for (const auto& [typed, treebank] : kPairs) {
    EXPECT_EQ(joined(kReviews.tokenize(typed)), joined(kReviews.tokenize(treebank)));
    EXPECT_NE(joined(kBasic.tokenize(typed)), joined(kBasic.tokenize(treebank))) << "the pair shows nothing: " << typed;
  }
}

TEST(Tokenizer, NormalizedTextIsPlainTextWithTheSameWords) {
  EXPECT_EQ(normalize_review_text("  It\u2019s  a WELL-made -LRB- `` film '' -RRB-, is n't\tit "),
            "it's a well made ( \" film \"  rrb , isn't it");
  EXPECT_EQ(normalize_review_text(""), "");
  for (const Case& c : kReviewsCases) {
    EXPECT_EQ(joined(kBasic.tokenize(normalize_review_text(c.text))), c.words) << c.name;
  }
}

TEST(Tokenizer, WordsOfALineBreakTagCutShort) {
  const std::string tag = "<br />";
  for (size_t size = 0; size < tag.size(); ++size) {
    const std::string words = joined(kBasic.tokenize(tag.substr(0, size)));
    EXPECT_EQ(words, size == 4 ? "<br" : tag.substr(0, size));
  }
}

TEST(Tokenizer, InvalidUtf8IsAnErrorThatNamesTheByte) {
  for (const Tokenizer& tokenizer : {kReviews, kBasic}) {
    EXPECT_EQ(error_of([&] { tokenizer.tokenize("caf\xE9!"); }),
              "text: byte 3: got '\\xe9', expected well-formed UTF-8");
    EXPECT_EQ(error_of([&] { tokenizer.tokenize("a\xC3"); }), "text: byte 1: got '\\xc3', expected well-formed UTF-8");
  }
}

TEST(Tokenizer, NulIsAByteLikeAnyOther) {
  EXPECT_EQ(kReviews.tokenize(std::string_view("a\0b c", 5)), (std::vector<std::string>{std::string("a\0b", 3), "c"}));
}

class EncodeTest : public ::testing::Test {
 protected:
  const Vocabulary vocabulary_{{"<unk>", "<pad>", "a", "b", "'", "."}, 0, 1, "test"};

  std::vector<int32_t> encode(std::string_view text, size_t sequence_length, Tokenizer::Encoding* encoding = nullptr) {
    std::vector<int32_t> ids(sequence_length + 2, -7);  // guards on both sides
    const Tokenizer::Encoding result = kReviews.encode(text, vocabulary_, std::span(ids).subspan(1, sequence_length));
    EXPECT_EQ(ids.front(), -7);
    EXPECT_EQ(ids.back(), -7);
    if (encoding != nullptr) *encoding = result;
    return {ids.begin() + 1, ids.end() - 1};
  }
};

TEST_F(EncodeTest, WordsThenPadding) {
  Tokenizer::Encoding encoding;
  EXPECT_EQ(encode("A b x.", 6, &encoding), (std::vector<int32_t>{2, 3, 0, 5, 1, 1}));
  EXPECT_EQ(encoding.num_words, 4);
  EXPECT_EQ(encoding.num_unknown, 1);
  EXPECT_EQ(encode("x y a z", 2, &encoding), (std::vector<int32_t>{0, 0}));
  EXPECT_EQ(encoding.num_words, 4);
  EXPECT_EQ(encoding.num_unknown, 2) << "unknown words that were cut off do not count";
  EXPECT_EQ(encode("", 3), (std::vector<int32_t>{1, 1, 1}));
  EXPECT_EQ(encode("a b", 0, &encoding), std::vector<int32_t>{});
  EXPECT_EQ(encoding.num_words, 2);
}

TEST_F(EncodeTest, SpecialEntriesCannotBeSpelled) {
  Tokenizer::Encoding encoding;
  EXPECT_EQ(encode("<pad> <unk> a", 3, &encoding), (std::vector<int32_t>{0, 0, 2}));
  EXPECT_EQ(encoding.num_unknown, 2);
}

TEST_F(EncodeTest, EveryTextLengthAgainstEverySequenceLength) {
  for (size_t num_words = 0; num_words <= 70; ++num_words) {
    std::string text;
    for (size_t i = 0; i < num_words; ++i) text += i % 3 == 0 ? "a " : i % 3 == 1 ? "B\n" : "c ";
    for (size_t sequence_length = 0; sequence_length <= 70; ++sequence_length) {
      Tokenizer::Encoding encoding;
      const std::vector<int32_t> ids = encode(text, sequence_length, &encoding);
      ASSERT_EQ(encoding.num_words, static_cast<int64_t>(num_words));
      int64_t num_unknown = 0;
      for (size_t i = 0; i < sequence_length; ++i) {
        const int32_t expected = i >= num_words ? 1 : i % 3 == 0 ? 2 : i % 3 == 1 ? 3 : 0;
        ASSERT_EQ(ids[i], expected) << num_words << " words, place " << i << " of " << sequence_length;
        num_unknown += expected == 0 ? 1 : 0;
      }
      ASSERT_EQ(encoding.num_unknown, num_unknown);
    }
  }
}

TEST_F(EncodeTest, TenThousandWords) {
  std::string text;
  for (int i = 0; i < 10'000; ++i) text += i % 2 == 0 ? "A," : " is n't ";
  Tokenizer::Encoding encoding;
  const std::vector<int32_t> ids = encode(text, 48, &encoding);
  EXPECT_EQ(encoding.num_words, 5'000 * 2 + 5'000 * 3);  // "a ," and "isn ' t"
  EXPECT_EQ(kReviews.tokenize(text).size(), 25'000u);
  EXPECT_EQ(ids[0], 2);
  EXPECT_EQ(encode(std::string(1 << 20, 'x'), 2, &encoding), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(encoding.num_words, 1);
}

TEST_F(EncodeTest, AnErrorLeavesTheIdsAlone) {
  std::vector<int32_t> ids = {7, 7};
  EXPECT_THROW(kReviews.encode("a b \xFF", vocabulary_, ids), Error);
  EXPECT_EQ(ids, (std::vector<int32_t>{7, 7}));
}

TEST_F(EncodeTest, TakesMemoryOncePerTextAndNotPerWord) {
  std::string text;
  for (int i = 0; i < 1'000; ++i) text += "an-unknown-long-word-of-no-vocabulary, isn't it ";
  std::vector<int32_t> ids(16);
  const size_t before = allocated_bytes();
  kReviews.encode(text, vocabulary_, ids);
  EXPECT_LE(allocated_bytes() - before, text.size() + 64);
}

TEST_F(EncodeTest, ThreadsDoNotDisturbEachOther) {
  const std::string text = "A \u00c9 b \u201cx\u201d <br /> a.";
  const std::vector<int32_t> expected = encode(text, 8);
  std::vector<std::thread> threads;
  std::vector<int> num_wrong(4, 0);
  for (int& wrong : num_wrong) {
    threads.emplace_back([&] {
      std::vector<int32_t> ids(8);
      for (int i = 0; i < 2'000; ++i) {
        kReviews.encode(text, vocabulary_, ids);
        wrong += ids == expected ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, (std::vector<int>{0, 0, 0, 0}));
}

// tokenize and encode agree on real sentences.
TEST(Tokenizer, EncodeIsTokenizeLookedUp) {
  std::ifstream file(TESSERA_SOURCE_DIR "/examples/data/reviews.tsv");
  std::vector<std::string> words = {"<unk>", "<pad>"};
  std::vector<std::string> texts;
  for (std::string line; std::getline(file, line);) texts.push_back(line.substr(line.find('\t') + 1));
  ASSERT_GE(texts.size(), 200u);
  std::set<std::string> distinct;
  for (size_t i = 0; i < texts.size(); i += 2) {
    for (const std::string& word : kReviews.tokenize(texts[i])) distinct.insert(word);
  }
  words.insert(words.end(), distinct.begin(), distinct.end());
  const Vocabulary vocabulary(words, 0, 1, "test");
  int64_t num_known = 0;
  for (const std::string& text : texts) {
    const std::vector<std::string> expected = kReviews.tokenize(text);
    std::vector<int32_t> ids(expected.size() + 3);
    const Tokenizer::Encoding encoding = kReviews.encode(text, vocabulary, ids);
    ASSERT_EQ(encoding.num_words, static_cast<int64_t>(expected.size()));
    for (size_t i = 0; i < ids.size(); ++i) {
      ASSERT_EQ(ids[i], i < expected.size() ? vocabulary.id(expected[i]) : 1) << text;
      num_known += ids[i] > 1 ? 1 : 0;
    }
  }
  EXPECT_GT(num_known, 2'000);
}

}  // namespace
}  // namespace tessera::io
