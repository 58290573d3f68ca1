#include "tessera/classifier/config.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "random_model.h"
#include "tessera/core/error.h"
#include "unit/io/io_test_util.h"

namespace tessera::classifier {
namespace {

using nlohmann::ordered_json;
using tessera::testing::error_of;
using tessera::testing::read_file;
using tessera::testing::TempDir;
using tessera::testing::write_file;
using testing::odd_config;

TEST(ClassifierConfig, FullSizePresetHasThePublishedNumbers) {
  const ClassifierConfig config = preset_config("apws25");
  config.validate("preset");
  EXPECT_EQ(config.flops_per_sentence(), 2'119'206'912);
  EXPECT_EQ(config.feature_size(), 4'096);
  EXPECT_EQ(config.num_taps(), 24);
  EXPECT_EQ(config.max_filter_width(), 9);
  EXPECT_EQ(config.vocab_size, 21'635);
  EXPECT_EQ(config.class_names, (std::vector<std::string>{"negative", "positive"}));
  ModelWeights weights;
  int64_t parameters = 0;
  for (const TensorSpec& spec : tensor_specs(config, weights)) {
    int64_t size = 1;
    for (const int64_t dim : spec.shape) size *= dim;
    if (spec.name != "embedding.weight") parameters += size;
  }
  EXPECT_EQ(parameters, 136'870'406);
}

TEST(ClassifierConfig, SmallPresetIsSmall) {
  const ClassifierConfig config = preset_config("small");
  config.validate("preset");
  EXPECT_LT(config.flops_per_sentence(), 100'000);
  EXPECT_EQ(error_of([] { preset_config("large\n"); }), "preset: got 'large\\x0a', expected 'apws25' or 'small'");
}

TEST(ClassifierConfig, HeadInputSizes) {
  const ClassifierConfig config = odd_config();
  EXPECT_EQ(config.head_input_size(0), 11);
  EXPECT_EQ(config.head_input_size(1), 9);
  EXPECT_EQ(config.head_input_size(2), 4);
}

TEST(ClassifierConfig, SavedAndLoadedAgain) {
  const TempDir directory;
  ClassifierConfig config = odd_config();
  config.text_normalization = TextNormalization::reviews;
  config.unknown_id = 4;
  config.pad_id = 28;
  config.class_names[1] = "g\xC3\xB6\"\\d\n";
  save_config(directory / "config.json", config);
  std::vector<std::string> warnings;
  EXPECT_EQ(load_config(directory / "config.json", warnings), config);
  EXPECT_TRUE(warnings.empty());
  config.head_sizes.clear();
  save_config(directory / "config.json", config);
  EXPECT_EQ(load_config(directory / "config.json", warnings), config);
}

class ConfigFile : public ::testing::Test {
 protected:
  ConfigFile() : path_(directory_ / "config.json") {
    save_config(path_, odd_config());
    object_ = ordered_json::parse(read_file(path_));
  }

  std::string error_of_text(const std::string& text) {
    write_file(path_, text);
    std::vector<std::string> warnings;
    const std::string error = error_of([&] { load_config(path_, warnings); });
    EXPECT_TRUE(error == "no error" || error.find(path_.string()) == 0) << error << ": must name the file";
    return error;
  }
  std::string error_with(const char* key, const ordered_json& value) {
    ordered_json changed = object_;
    changed[key] = value;
    return error_of_text(changed.dump());
  }
  // The value as text that the JSON library would not write.
  std::string error_with_raw(const std::string& key, const std::string& raw) {
    ordered_json changed = object_;
    changed[key] = "@@@";
    std::string text = changed.dump();
    text.replace(text.find("\"@@@\""), 5, raw);
    return error_of_text(text);
  }

  const TempDir directory_;
  std::filesystem::path path_;
  ordered_json object_;
};

constexpr const char* kIntegerKeys[] = {"version",     "vocab_size",  "embedding_size", "sequence_length",
                                        "num_filters", "num_experts", "expert_size",    "num_classes",
                                        "unknown_id",  "pad_id"};
constexpr const char* kOtherKeys[] = {"format",      "filter_widths", "head_sizes",
                                      "class_names", "tokenizer",     "text_normalization"};

TEST_F(ConfigFile, EveryKeyIsRequired) {
  for (const char* key : kIntegerKeys) EXPECT_EQ(object_.count(key), 1u);
  EXPECT_EQ(object_.size(), std::size(kIntegerKeys) + std::size(kOtherKeys));
  for (const auto& [key, value] : object_.items()) {
    ordered_json changed = object_;
    changed.erase(key);
    EXPECT_NE(error_of_text(changed.dump()).find("'" + key + "': got no such key"), std::string::npos) << key;
  }
}

TEST_F(ConfigFile, IntegersAreJsonIntegers) {
  for (const std::string key : kIntegerKeys) {
    for (const std::string raw : {"8.0", "\"8\"", "1e9", "-0", "-1", "null", "true", "[1]", "{}", "1e-3", "0x10",
                                  "99999999999999999999999", "9223372036854775807", "1e999", "NaN", "Infinity"}) {
      const std::string error = error_with_raw(key, raw);
      EXPECT_NE(error, "no error") << key << ": " << raw;
      const bool is_json = raw != "0x10" && raw != "NaN" && raw != "Infinity" && raw != "1e999";
      if (is_json) {
        EXPECT_NE(error.find("'" + key + "'"), std::string::npos) << error;
      }
    }
  }
}

TEST_F(ConfigFile, WrongTypes) {
  for (const char* key : kOtherKeys) {
    for (const ordered_json& value : {ordered_json(8), ordered_json(nullptr), ordered_json::object()}) {
      EXPECT_NE(error_with(key, value).find(std::string("'") + key + "'"), std::string::npos) << key << value;
    }
  }
  EXPECT_NE(error_with("filter_widths", {1, 2.0}), "no error");
  EXPECT_NE(error_with("filter_widths", {1, "2"}), "no error");
  EXPECT_NE(error_with("head_sizes", ordered_json::array({ordered_json::array({1})})), "no error");
  EXPECT_NE(error_with("class_names", {"a", 2, "c"}), "no error");
  EXPECT_NE(error_with("format", "tessera-moe").find("expected 'tessera-classifier'"), std::string::npos);
  EXPECT_NE(error_with("version", 2), "no error");
  EXPECT_NE(error_with("tokenizer", "spacy").find("expected 'basic_english'"), std::string::npos);
  EXPECT_NE(error_with("text_normalization", "Reviews").find("'none' or 'reviews'"), std::string::npos);
}

TEST_F(ConfigFile, MalformedFiles) {
  const std::string good = object_.dump();
  EXPECT_EQ(error_of_text(good), "no error");
  for (const std::string& text :
       {std::string(), std::string("[]"), good.substr(0, good.size() / 2), good + "{}", "\xEF\xBB\xBF" + good,
        std::string("{\"format\": \"\xFF\"}"), std::string(70'000, '['), good + std::string(1, '\0')}) {
    EXPECT_NE(error_of_text(text), "no error") << text.substr(0, 40);
  }
  // A key twice, even with the same value.
  EXPECT_NE(error_of_text("{\"pad_id\": 1, " + good.substr(1)).find("twice"), std::string::npos);
  std::string deep = good;
  deep.insert(1, "\"extra\": " + std::string(33, '[') + std::string(33, ']') + ", ");
  EXPECT_NE(error_of_text(deep).find("nested deeper"), std::string::npos);
  const std::string padding(1u << 20, ' ');
  EXPECT_NE(error_of_text(good + padding), "no error");  // beyond 1 MiB
  EXPECT_EQ(error_of_text(good + padding.substr(good.size())), "no error");
  std::filesystem::remove(path_);
  std::vector<std::string> warnings;
  EXPECT_NE(error_of([&] { load_config(path_, warnings); }), "no error");
}

TEST_F(ConfigFile, UnknownKeysAreReported) {
  object_["colour"] = "red";
  object_["top\x1bk"] = 2;
  write_file(path_, object_.dump());
  std::vector<std::string> warnings;
  EXPECT_EQ(load_config(path_, warnings), odd_config());
  ASSERT_EQ(warnings.size(), 2u);
  const std::string all = warnings[0] + warnings[1];
  EXPECT_NE(all.find("unknown key 'colour'"), std::string::npos) << all;
  EXPECT_NE(all.find("unknown key 'top\\x1bk'"), std::string::npos) << all;
}

// Each limit, at it and one beyond.
TEST(ConfigLimits, Fields) {
  struct Limit {
    const char* name;
    std::function<void(ClassifierConfig&, int64_t)> set;
    int64_t min, max;
  };
  const auto set_field = [](auto member) {
    return [member](ClassifierConfig& config, int64_t value) {
      config.*member = static_cast<std::decay_t<decltype(config.*member)>>(value);
    };
  };
  const Limit limits[] = {
      {"vocab_size", set_field(&ClassifierConfig::vocab_size), 2, 16'777'216},
      {"embedding_size", set_field(&ClassifierConfig::embedding_size), 1, 1'048'576},
      {"sequence_length", set_field(&ClassifierConfig::sequence_length), 6, 16'777'216},
      {"num_filters", set_field(&ClassifierConfig::num_filters), 1, 1'048'576},
      {"num_experts", set_field(&ClassifierConfig::num_experts), 1, 4'096},
      {"expert_size", set_field(&ClassifierConfig::expert_size), 1, 1'048'576},
      {"unknown_id", set_field(&ClassifierConfig::unknown_id), 0, 28},
      {"pad_id", set_field(&ClassifierConfig::pad_id), 0, 28},
      {"filter_widths", [](ClassifierConfig& c, int64_t v) { c.filter_widths[1] = v; }, 1, 6},
      {"filter_widths", [](ClassifierConfig& c, int64_t v) { c.filter_widths.assign(static_cast<size_t>(v), 2); }, 1,
       64},
      {"head_sizes", [](ClassifierConfig& c, int64_t v) { c.head_sizes[1] = v; }, 1, 1'048'576},
      {"head_sizes", [](ClassifierConfig& c, int64_t v) { c.head_sizes.assign(static_cast<size_t>(v), 2); }, 0, 64},
  };
  for (const Limit& limit : limits) {
    const auto error_at = [&](int64_t value) {
      ClassifierConfig config = odd_config();
      limit.set(config, value);
      return error_of([&] { config.validate("here"); });
    };
    EXPECT_EQ(error_at(limit.min), "no error") << limit.name;
    EXPECT_EQ(error_at(limit.max), "no error") << limit.name;
    if (limit.min > 0 || std::string(limit.name) != "head_sizes") {
      EXPECT_NE(error_at(limit.min - 1), "no error") << limit.name;
    }
    EXPECT_EQ(error_at(limit.max + 1).find("here: '"), 0u) << limit.name << ": " << error_at(limit.max + 1);
  }
}

TEST(ConfigLimits, AFilterWiderThanTheSequence) {
  ClassifierConfig config = odd_config();
  config.filter_widths = {3, 7};
  EXPECT_EQ(error_of([&] { config.validate("config.json"); }),
            "config.json: 'filter_widths' item 1: got 7, expected 1 to the sequence_length of 6");
}

TEST(ConfigLimits, ClassNames) {
  ClassifierConfig config = odd_config();
  config.class_names = {"a", "b"};
  EXPECT_EQ(error_of([&] { config.validate("c"); }), "c: 'class_names': got 2 names, expected 3, one a class");
  config.class_names = {"a", "b", "a"};
  EXPECT_EQ(error_of([&] { config.validate("c"); }),
            "c: 'class_names' item 2: got 'a' again, expected every name once");
  config.class_names = {"a", "", "c"};
  EXPECT_EQ(error_of([&] { config.validate("c"); }), "c: 'class_names' item 1: got an empty name, expected a name");
  config.num_classes = 0;
  config.class_names = {};
  EXPECT_NE(error_of([&] { config.validate("c"); }), "no error");
}

TEST(ConfigLimits, ProductsThatWouldOverflow) {
  ClassifierConfig config = odd_config();
  config.vocab_size = 16'777'216;
  config.embedding_size = 65'536;
  EXPECT_EQ(error_of([&] { config.validate("c"); }), "no error");  // 2^40 elements
  config.embedding_size = 65'537;
  EXPECT_NE(error_of([&] { config.validate("c"); }).find("product"), std::string::npos);

  config = odd_config();
  config.sequence_length = 16'777'216;
  config.filter_widths.assign(64, 8'388'608);
  config.embedding_size = 1'048'576;
  config.num_filters = 1'048'576;
  EXPECT_NE(error_of([&] { config.validate("c"); }).find("product"), std::string::npos);
  config.embedding_size = 16'384;
  config.num_filters = 1;
  EXPECT_NE(error_of([&] { config.validate("c"); }).find("too much work"), std::string::npos);

  config = odd_config();
  config.num_filters = 1'048'576;
  config.filter_widths.assign(64, 1);
  config.expert_size = 1'048'576;
  config.num_experts = 4'096;
  EXPECT_NE(error_of([&] { config.validate("c"); }).find("product"), std::string::npos);
}

}  // namespace
}  // namespace tessera::classifier
