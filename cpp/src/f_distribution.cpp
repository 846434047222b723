#include "trautoml/f_distribution.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

// Eigen's betainc is not used: it returns no logarithm, and at d2 = 1e5 it is off by 2e-10.
namespace trautoml {
namespace {

constexpr double log_sqrt_two_pi = 0.918938533204672741780329736406;

/// log Gamma(x) less Stirling's (x - 1/2) log x - x + log sqrt(2 pi), for x >= 10.
double stirling_error(double x) {
    const double r = 1.0 / (x * x);
    return (1.0 / 12 -
            r * (1.0 / 360 -
                 r * (1.0 / 1260 - r * (1.0 / 1680 - r * (1.0 / 1188 - r * 691.0 / 360360))))) /
           x;
}

/// std::lgamma writes a global sign, which threads must not.
double log_gamma(double x) {
    double product = 1.0;
    for (; x < 10.0; x += 1.0) product *= x;
    return (x - 0.5) * std::log(x) - x + log_sqrt_two_pi + stirling_error(x) - std::log(product);
}

/// log Beta(a, b). Three large log Gammas would cancel, so for large arguments their Stirling parts
/// are combined first, and only the small errors of Stirling's formula are subtracted.
double log_beta(double a, double b) {
    const double p = std::min(a, b);
    const double q = std::max(a, b);
    if (q < 10.0) return log_gamma(p) + log_gamma(q) - log_gamma(p + q);
    const double log_rest = std::log1p(-p / (p + q));
    const double errors = stirling_error(q) - stirling_error(p + q);
    if (p < 10.0) return log_gamma(p) + errors + p - p * std::log(p + q) + (q - 0.5) * log_rest;
    return log_sqrt_two_pi - 0.5 * std::log(q) + stirling_error(p) + errors +
           (p - 0.5) * std::log(p / (p + q)) + q * log_rest;
}

/// The continued fraction of the incomplete beta function (DLMF 8.17.22) by Lentz's method. It
/// converges fast for x < (a + 1) / (a + b + 2).
double continued_fraction(double a, double b, double x) {
    constexpr int max_terms = 1'000'000;
    constexpr double tiny = 1e-300;
    const auto away_from_zero = [](double v) { return std::abs(v) < tiny ? tiny : v; };
    double c = 1.0;
    double d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    double value = d;
    for (int m = 1; m < max_terms; ++m) {
        const double even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / away_from_zero(1.0 + even * d);
        c = away_from_zero(1.0 + even / c);
        value *= d * c;
        const double odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / away_from_zero(1.0 + odd * d);
        c = away_from_zero(1.0 + odd / c);
        value *= d * c;
        if (std::abs(d * c - 1.0) <= std::numeric_limits<double>::epsilon()) return value;
    }
    throw std::domain_error("the F distribution with degrees of freedom " + std::to_string(2 * b) +
                            " and " + std::to_string(2 * a) +
                            " did not converge: use fewer trials or probes");
}

/// log I_x(a, b), the regularised incomplete beta function, given log x and log(1 - x).
double log_incomplete_beta(double a, double b, double x, double log_x, double log_rest) {
    return a * log_x + b * log_rest - std::log(a) - log_beta(a, b) +
           std::log(continued_fraction(a, b, x));
}

}  // namespace

double f_log_sf(double f, double d1, double d2) {
    if (!(f >= 0.0) || !(d1 > 0.0 && std::isfinite(d1)) || !(d2 > 0.0 && std::isfinite(d2)))
        throw std::invalid_argument(
            "expected f >= 0 and finite degrees of freedom above 0, got f = " + std::to_string(f) +
            ", d1 = " + std::to_string(d1) + ", d2 = " + std::to_string(d2));
    const double ratio = d1 * f / d2;
    if (ratio == 0.0) return 0.0;
    if (std::isinf(ratio)) return -ratio;
    // The survival function is I_x(a, b) and its complement is I_(1 - x)(b, a); the one whose
    // fraction converges is also the smaller one or close to it, so that nothing cancels.
    const double a = 0.5 * d2;
    const double b = 0.5 * d1;
    const double x = 1.0 / (1.0 + ratio);
    const double log_x = -std::log1p(ratio);
    const double log_rest = -std::log1p(1.0 / ratio);
    if (x < (a + 1.0) / (a + b + 2.0)) return log_incomplete_beta(a, b, x, log_x, log_rest);
    return std::log1p(-std::exp(log_incomplete_beta(b, a, ratio / (1.0 + ratio), log_rest, log_x)));
}

double f_sf(double f, double d1, double d2) { return std::exp(f_log_sf(f, d1, d2)); }

}  // namespace trautoml
