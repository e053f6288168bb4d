// Test cases of the compiled part, one program of many cases, so that each runs in a process of its own.
//
//     program            lists the cases
//     program CASE       exits 0 and prints nothing, or says what was not as expected
#pragma once

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace cases {

inline std::map<std::string, void (*)()>& all() {
  static std::map<std::string, void (*)()> known;
  return known;
}

struct Case {
  Case(const char* name, void (*run)()) { all()[name] = run; }
};

}  // namespace cases

#define CASE(name)                            \
  void name();                                \
  const cases::Case name##_case(#name, name); \
  void name()

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

#define EXPECT_OK(call) EXPECT((call) == poolrt::kSuccess)
