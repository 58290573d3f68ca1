// The C interface of the classifier against the C++ one on the shipped model, and its errors.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tessera/classifier/classifier.h"
#include "tessera/tessera.h"

namespace tessera::testing {
namespace {

const std::string kModel = std::string(TESSERA_SOURCE_DIR) + "/models/movie-reviews";

struct CClassifier {
  explicit CClassifier(const tessera_classifier_options* options = nullptr) {
    EXPECT_EQ(tessera_classifier_load(kModel.c_str(), options, &handle), TESSERA_OK) << tessera_last_error();
    tessera_classifier_info_init(&info);
    EXPECT_EQ(tessera_classifier_get_info(handle, &info), TESSERA_OK);
  }
  ~CClassifier() { tessera_classifier_destroy(handle); }

  std::vector<int32_t> tokenize(const std::vector<std::string>& texts) const {
    std::vector<const char*> pointers;
    std::vector<size_t> lengths;
    for (const std::string& text : texts) pointers.push_back(text.data());
    for (const std::string& text : texts) lengths.push_back(text.size());
    std::vector<int32_t> ids(texts.size() * static_cast<size_t>(info.sequence_length), -7);
    EXPECT_EQ(tessera_classifier_tokenize(handle, pointers.data(), lengths.data(), static_cast<int64_t>(texts.size()),
                                          ids.data()),
              TESSERA_OK)
        << tessera_last_error();
    return ids;
  }

  tessera_classifier* handle = nullptr;
  tessera_classifier_info info;
};

TEST(ClassifierApi, WordsAreCounted) {
  const CClassifier c;
  const std::string long_text(200, 'a');
  const std::string texts[] = {"a good film", "zzzzqqqq", "", "a " + std::string("film ") + long_text};
  const char* pointers[4];
  size_t lengths[4];
  for (int i = 0; i < 4; ++i) {
    pointers[i] = texts[i].data();
    lengths[i] = texts[i].size();
  }
  std::vector<int32_t> ids(4 * static_cast<size_t>(c.info.sequence_length)), plain(ids.size());
  std::vector<int64_t> words(4, -1), unknown(4, -1);
  ASSERT_EQ(
      tessera_classifier_tokenize_counted(c.handle, pointers, lengths, 4, ids.data(), words.data(), unknown.data()),
      TESSERA_OK);
  EXPECT_EQ(words, (std::vector<int64_t>{3, 1, 0, 3}));
  EXPECT_EQ(unknown, (std::vector<int64_t>{0, 1, 0, 1}));
  ASSERT_EQ(tessera_classifier_tokenize_counted(c.handle, pointers, lengths, 4, plain.data(), nullptr, nullptr),
            TESSERA_OK);
  EXPECT_EQ(ids, plain);
}

TEST(CApiClassifier, EqualsTheCxxClassifier) {
  const CClassifier c;
  const std::vector<int32_t> ids = c.tokenize({"A wonderful, moving film.", "Dull and far too long.", ""});
  const auto n = static_cast<size_t>(3), classes = static_cast<size_t>(c.info.num_classes);
  std::vector<float> logits(n * classes), router(n * static_cast<size_t>(c.info.num_experts)),
      features(n * static_cast<size_t>(c.info.feature_size));
  std::vector<uint8_t> status(n, 9);
  tessera_classifier_outputs outputs;
  tessera_classifier_outputs_init(&outputs);
  outputs.logits = logits.data();
  outputs.router_weights = router.data();
  outputs.features = features.data();
  outputs.status = status.data();
  ASSERT_EQ(tessera_classifier_run(c.handle, 3, ids.data(), nullptr, &outputs), TESSERA_OK) << tessera_last_error();
  EXPECT_EQ(status, std::vector<uint8_t>(n, 0));

  auto model = std::make_shared<const classifier::Model>(classifier::load_model(kModel));
  const auto expected = classifier::make_cpu_classifier(model, {});
  EXPECT_EQ(tessera_classifier_description(c.handle), expected->description());
  std::vector<float> want(logits.size()), want_router(router.size()), want_features(features.size());
  expected->run({3, ids.data(), nullptr}, {want.data(), want_router.data(), want_features.data(), nullptr});
  EXPECT_EQ(logits, want);
  EXPECT_EQ(router, want_router);
  EXPECT_EQ(features, want_features);
  const std::string positive = tessera_classifier_class_name(c.handle, 1);
  EXPECT_EQ(positive, model->config.class_names[1]);
  EXPECT_GT(logits[1], logits[0]);
  EXPECT_LT(logits[classes + 1], logits[classes]);
  EXPECT_EQ(tessera_classifier_class_name(c.handle, c.info.num_classes), nullptr);
  EXPECT_EQ(tessera_classifier_class_name(c.handle, -1), nullptr);
}

TEST(CApiClassifier, BadSentencesAreMarked) {
  const CClassifier c;
  std::vector<int32_t> ids = c.tokenize({"fine", "fine"});
  ids[0] = static_cast<int32_t>(c.info.vocab_size);
  std::vector<float> logits(2 * static_cast<size_t>(c.info.num_classes));
  std::vector<uint8_t> status(2, 9);
  tessera_classifier_outputs outputs;
  tessera_classifier_outputs_init(&outputs);
  outputs.logits = logits.data();
  outputs.status = status.data();
  ASSERT_EQ(tessera_classifier_run(c.handle, 2, ids.data(), nullptr, &outputs), TESSERA_OK);
  EXPECT_EQ(status, (std::vector<uint8_t>{1, 0}));
  EXPECT_TRUE(std::isnan(logits[0]));
  EXPECT_TRUE(std::isfinite(logits.back()));
}

TEST(CApiClassifier, Errors) {
  tessera_classifier* handle = nullptr;
  EXPECT_EQ(tessera_classifier_load("/nowhere", nullptr, &handle), TESSERA_INVALID_ARGUMENT);
  EXPECT_NE(std::string(tessera_last_error()).find("/nowhere"), std::string::npos) << tessera_last_error();
  EXPECT_EQ(tessera_classifier_load(nullptr, nullptr, &handle), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "directory");
  tessera_classifier_options options;
  tessera_classifier_options_init(&options);
  options.precision = TESSERA_PRECISION_FP16;
  EXPECT_EQ(tessera_classifier_load(kModel.c_str(), &options, &handle), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "precision: got fp16 on the CPU, expected bf16 or fp32");
  options.precision = TESSERA_PRECISION_DEFAULT;
  options.form = "direct";
  EXPECT_EQ(tessera_classifier_load(kModel.c_str(), &options, &handle), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "form");
  options.form = nullptr;
  for (const int32_t threads : {-1, tessera_moe_limits()->max_threads + 1}) {
    options.num_threads = threads;
    EXPECT_EQ(tessera_classifier_load(kModel.c_str(), &options, &handle), TESSERA_INVALID_ARGUMENT);
    EXPECT_STREQ(tessera_last_error_where(), "num_threads");
  }
  options.num_threads = 0;
  options.device = tessera_num_devices() + 3;
  EXPECT_NE(tessera_classifier_load(kModel.c_str(), &options, &handle), TESSERA_OK);
  EXPECT_STREQ(tessera_last_error_where(), "device");
  EXPECT_EQ(handle, nullptr);

  const CClassifier c;
  std::vector<float> logits(static_cast<size_t>(c.info.num_classes));
  tessera_classifier_outputs outputs;
  tessera_classifier_outputs_init(&outputs);
  const std::vector<int32_t> ids = c.tokenize({"fine"});
  EXPECT_EQ(tessera_classifier_run(c.handle, 1, ids.data(), nullptr, &outputs), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "logits");
  outputs.logits = logits.data();
  EXPECT_EQ(tessera_classifier_run(c.handle, 1, nullptr, logits.data(), &outputs), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "embeddings");
  EXPECT_EQ(tessera_classifier_run(c.handle, 1, nullptr, nullptr, &outputs), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "ids");
  EXPECT_EQ(tessera_classifier_run(c.handle, -1, ids.data(), nullptr, &outputs), TESSERA_INVALID_ARGUMENT);
  EXPECT_EQ(tessera_classifier_run(c.handle, 0, nullptr, nullptr, &outputs), TESSERA_OK);
  const char* text = "\xff";
  const size_t length = 1;
  std::vector<int32_t> out(static_cast<size_t>(c.info.sequence_length));
  EXPECT_EQ(tessera_classifier_tokenize(c.handle, &text, &length, 1, out.data()), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error_where(), "texts[0]");
  text = "good\0film";
  const size_t whole = 9;
  EXPECT_EQ(tessera_classifier_tokenize(c.handle, &text, &whole, 1, out.data()), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "texts[0]: got a NUL byte at byte 4, expected text");
}

TEST(CApiClassifier, OutputsOverlapNothingElse) {
  const CClassifier c;
  std::vector<int32_t> ids = c.tokenize({"fine", "fine"});
  std::vector<float> logits(2 * static_cast<size_t>(c.info.num_classes + c.info.num_experts));
  tessera_classifier_outputs outputs;
  tessera_classifier_outputs_init(&outputs);
  const auto run = [&] { return tessera_classifier_run(c.handle, 2, ids.data(), nullptr, &outputs); };
  outputs.logits = reinterpret_cast<float*>(ids.data());
  EXPECT_EQ(run(), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "logits: got memory that overlaps ids, expected memory of its own");
  outputs.logits = logits.data();
  outputs.router_weights = logits.data() + 2 * c.info.num_classes - 1;
  EXPECT_EQ(run(), TESSERA_INVALID_ARGUMENT);
  EXPECT_STREQ(tessera_last_error(), "router_weights: got memory that overlaps logits, expected memory of its own");
  ++outputs.router_weights;
  EXPECT_EQ(run(), TESSERA_OK) << tessera_last_error();
}

}  // namespace
}  // namespace tessera::testing
