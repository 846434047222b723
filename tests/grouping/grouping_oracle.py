"""Section 2 of the design in numpy and SciPy, formula by formula, from all rows at every step.

It shares no code with the package and keeps no running statistics.
"""

import numpy as np
from scipy import stats
from scipy.special import logsumexp


def gaussian_logpdf(x, mean, sigma):
    sign, log_det = np.linalg.slogdet(2 * np.pi * sigma)
    assert sign > 0
    return -0.5 * (log_det + (x - mean) @ np.linalg.solve(sigma, x - mean))


def hotelling(z, q):
    T, B = z.shape
    zbar = z.mean(axis=0)
    scatter = (z - zbar).T @ (z - zbar) + T * q * np.eye(B)
    return T * (T - B) / B * zbar @ np.linalg.solve(scatter, zbar), (B, T - B)


def anderson(x, y, q):
    if len(x) > len(y):
        x, y = y, x
    T, N = len(x), len(y)
    a = np.sqrt(T / N)
    return hotelling(x - a * y[:T] + a * y[:T].mean(axis=0) - y.mean(axis=0), q)


class SlowGrouper:
    def __init__(
        self,
        *,
        n_clusters=1000,
        gamma=0.2,
        alpha=0.005,
        sigma0_sq=3e-4,
        covariance="trials",
        pairing="anderson",
        prior_strength=1.0,
        score_resolution=1e-3,
        preset_low=0.0,
        preset_high=1.0,
        seed=0,
    ):
        self.K = n_clusters
        self.gamma, self.alpha, self.sigma0_sq = gamma, alpha, sigma0_sq
        self.covariance, self.pairing = covariance, pairing
        self.strength, self.q = prior_strength, score_resolution**2 / 12
        self.low, self.high, self.seed = preset_low, preset_high, seed
        self.groups = []  # lists of trials matrices
        self.taken = set()
        self.labels = []

    def presets(self, B):
        return np.random.default_rng(self.seed).uniform(self.low, self.high, size=(self.K, B))

    def prior_covariance(self, B):
        return self.sigma0_sq * self.K ** (-1 / B) * np.eye(B)

    def empty(self):
        return [k for k in range(self.K) if k not in self.taken]

    def mean(self, members):
        return np.mean([r.mean(axis=0) for r in members], axis=0)

    def sigma(self, members):
        mu, B = self.mean(members), members[0].shape[1]
        if self.covariance == "paper" and len(members) > 1:
            rows = np.array([r.mean(axis=0) for r in members])
        else:
            rows = np.concatenate(members)
        m = len(rows)
        S = (rows - mu).T @ (rows - mu) / m
        return (m * S + self.strength * self.prior_covariance(B)) / (
            m + self.strength
        ) + self.q * np.eye(B)

    def log_posterior(self, trials):
        x, B = trials.mean(axis=0), trials.shape[1]
        presets, empty = self.presets(B), self.empty()
        with np.errstate(divide="ignore"):
            log_rest = -len(self.groups) * self.gamma  # log(1 - w)
            w = 1 - np.exp(log_rest)
            log_prior = [np.log(w * len(V) / len(self.labels)) for V in self.groups]
            log_prior += [log_rest - np.log(self.K - len(self.groups))] * len(empty)
        log_likelihood = [gaussian_logpdf(x, self.mean(V), self.sigma(V)) for V in self.groups]
        log_likelihood += list(
            stats.multivariate_normal.logpdf(
                presets[empty], mean=x, cov=self.prior_covariance(B)
            ).reshape(-1)
        )
        joint = np.array(log_prior) + np.array(log_likelihood)
        return joint - logsumexp(joint)

    def test(self, trials, members):
        if self.pairing == "anderson":
            f, df = anderson(trials, np.concatenate(members), self.q)
        else:
            f, df = hotelling(trials - np.mean(members, axis=0), self.q)
        return f, stats.f.sf(f, *df)

    def predict(self, trials):
        new = len(self.groups)
        if new == 0:
            return {"kind": "opened", "group": 0, "posterior": 1.0, "log_posterior": np.empty(0),
                    "statistic": None, "p_value": None, "tested_group": None}  # fmt: skip
        log_posterior = self.log_posterior(trials)
        best = int(np.argmax(log_posterior))
        found = {"kind": "opened", "group": new, "posterior": np.exp(log_posterior[best]),
                 "log_posterior": log_posterior[:new],
                 "statistic": None, "p_value": None, "tested_group": None}  # fmt: skip
        if best < new:
            found |= {"kind": "joined", "group": best}
            if self.alpha > 0:
                f, p = self.test(trials, self.groups[best])
                found |= {"statistic": f, "p_value": p, "tested_group": best}
                if p < self.alpha:
                    found |= {"kind": "split", "group": new}
        return found

    def learn(self, trials):
        found = self.predict(trials)
        if found["kind"] == "joined":
            self.groups[found["group"]].append(trials)
        else:
            x, empty = trials.mean(axis=0), self.empty()
            distance = ((self.presets(len(x))[empty] - x) ** 2).sum(axis=1)
            self.taken.add(empty[int(np.argmin(distance))])
            self.groups.append([trials])
            if not self.empty():
                self.K *= 2
        self.labels.append(found["group"])
        return found
