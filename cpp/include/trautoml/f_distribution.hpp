#pragma once

namespace trautoml {

/// Logarithm of the survival function of Fisher's F with (d1, d2) degrees of freedom at f.
///
/// Its error is below 1e-10 in absolute terms, so that p itself is right to 1e-10 relative, and it
/// goes on where p underflows. f is in [0, inf]: 0 gives 0 and inf gives -inf.
/// Throws std::invalid_argument unless f >= 0 and d1, d2 are finite and above 0.
[[nodiscard]] double f_log_sf(double f, double d1, double d2);

/// Survival function (p-value) of Fisher's F: exp(f_log_sf(f, d1, d2)).
[[nodiscard]] double f_sf(double f, double d1, double d2);

}  // namespace trautoml
