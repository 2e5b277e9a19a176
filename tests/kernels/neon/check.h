// Counting checks, random numbers, and distances: all that these tests need of a test framework.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

inline int passed = 0, failed = 0;

inline void check(bool holds, const std::string &what) {
    holds ? passed++ : failed++;
    if (!holds && failed <= 20) std::printf("FAILED %s\n", what.c_str());
}

// The same numbers on every machine.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}

    uint32_t bits() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return static_cast<uint32_t>(state_ >> 24);
    }
    int64_t below(int64_t n) { return bits() % n; }
    double uniform() { return bits() / 4294967296.0; }    // [0, 1)
    float symmetric() { return static_cast<float>(2.0 * uniform() - 1.0); }
    std::vector<float> vector(int64_t n) {
        std::vector<float> v(n);
        for (float &x : v) x = symmetric();
        return v;
    }

private:
    uint64_t state_;
};

// Norm of the difference over the norm of what is expected; infinite where something is not finite.
inline double distance(const std::vector<float> &found, const std::vector<double> &expected) {
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < expected.size(); i++) {
        if (!std::isfinite(found[i])) return INFINITY;
        difference += (found[i] - expected[i]) * (found[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    return norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

inline void check_near(const std::vector<float> &found, const std::vector<double> &expected,
                       double tolerance, const std::string &what) {
    const double far = found.size() == expected.size() ? distance(found, expected) : INFINITY;
    check(far <= tolerance, what + ": relative error " + std::to_string(far));
}

// Outputs start out as NaN, so that what is not written shows.
inline std::vector<float> unwritten(int64_t n) { return std::vector<float>(n, NAN); }
