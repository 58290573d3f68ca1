// Prints the battery as JSON: moe_cases > tests/moe/cases.json
#include <cstdio>

#include "moe/case.h"

int main() { std::fputs(tessera::testing::battery_json().c_str(), stdout); }
