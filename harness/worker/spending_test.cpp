#include "harness/worker/spending.hpp"

#include <chrono>
#include <thread>

#include <gtest/gtest.h>

namespace attnbench {
namespace {

void sleep_ms(int ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

TEST(Spending, NoSecondCountsTwice) {
  take_spending();
  {
    const SpendingScope outer(Expense::gates);
    sleep_ms(10);
    const SpendingScope inner(Expense::oracle);
    sleep_ms(40);
  }
  const Spending spent = take_spending();
  EXPECT_GE(spent.items.at("oracle").seconds, 0.040);
  EXPECT_GE(spent.items.at("gates").seconds, 0.010);
  EXPECT_LT(spent.items.at("gates").seconds, 0.040);
  EXPECT_EQ(spent.items.at("gates").times, 1);
  EXPECT_TRUE(take_spending().items.empty());
}

TEST(Spending, TheFastestCallIsThatWithoutItsPoison) {
  take_spending();
  for (const int ms : {60, 20}) {
    const WholeCall whole;
    const SpendingScope calls(Expense::calls);
    sleep_ms(ms);
    const SpendingScope poison(Expense::poison);
    sleep_ms(60);
  }
  const double fastest_s = take_spending().fastest_call_s;
  EXPECT_GE(fastest_s, 0.020);
  EXPECT_LT(fastest_s, 0.060);
}

TEST(Spending, WhatNobodyAsksForIsAddedUp) {
  take_spending();
  constexpr int kScopes = 10000;
  for (int i = 0; i < kScopes; ++i) {
    const SpendingScope scope(Expense::poison);
    if (i == 0) sleep_ms(20);
  }
  const Spending spent = take_spending();
  EXPECT_EQ(spent.items.at("poison").times, kScopes);
  EXPECT_GE(spent.items.at("poison").seconds, 0.020);
}

TEST(Spending, OtherThreadsCountForThemselves) {
  take_spending();
  std::thread([] {
    { const SpendingScope before_anybody_asked(Expense::poison); }
    EXPECT_TRUE(take_spending().items.empty());
    { const SpendingScope scope(Expense::poison); }
    EXPECT_EQ(take_spending().items.at("poison").times, 1);
  }).join();
  EXPECT_TRUE(take_spending().items.empty());
}

}  // namespace
}  // namespace attnbench
