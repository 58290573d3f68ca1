#include "run_report.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "exit_codes.h"
#include "unit/io/io_test_util.h"

namespace tessera::cli {
namespace {

TEST(ExitCode, TellsTheWorstThatHappenedToAWholeOutput) {
  classifier::RunStatistics statistics;
  statistics.num_read = statistics.num_ok = 5;
  EXPECT_EQ(exit_code_of(statistics), 0);
  EXPECT_EQ(exit_code_of(statistics, 1), 1) << "failed before the run was resumed";
  statistics.num_failed = 1;
  EXPECT_EQ(exit_code_of(statistics), 1);
  statistics.failed_devices = {"cuda:0: an illegal address"};
  EXPECT_EQ(exit_code_of(statistics), 3);
  statistics.num_failed = 0;
  EXPECT_EQ(exit_code_of(statistics), 3);
}

TEST(Failures, NameDevicesAndRecords) {
  classifier::RunStatistics statistics;
  statistics.num_read = 5;
  statistics.failed_devices = {"cuda:0: an illegal address"};
  ::testing::internal::CaptureStderr();
  print_failures(statistics);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "tessera: a device failed, the others finished its work: cuda:0: an illegal address\n");
  statistics.num_failed = 1;
  statistics.failed = {{.index = 3, .error = "record 3: bad"}};
  ::testing::internal::CaptureStderr();
  print_failures(statistics);
  testing::expect_contains(::testing::internal::GetCapturedStderr(), "1 of 5 records failed:\n  [3] record 3: bad\n");
}

TEST(Statistics, ListTheDevicesThatFailed) {
  classifier::RunStatistics statistics;
  statistics.failed_devices = {"cuda:1: gone"};
  const double none = std::numeric_limits<double>::quiet_NaN();
  const nlohmann::json json =
      nlohmann::json::parse(statistics_text(statistics, 1, {{"records_resumed", 7.0}, {"accuracy_percent", none}}));
  EXPECT_TRUE(json["accuracy_percent"].is_null());
  EXPECT_EQ(json["devices_failed"], nlohmann::json::array({"cuda:1: gone"}));
  EXPECT_EQ(json["records_resumed"], 7);
}

}  // namespace
}  // namespace tessera::cli
