"""The spike times of the neurons near the electrodes of a simulated culture.

The culture is a pair of stochastic rate equations, an excitatory and an inhibitory population
(after Wilson & Cowan 1972, Biophys. J. 12:1-24), with depressing excitatory synapses (after
Tsodyks & Markram 1997, PNAS 94:719-723) and slow adaptation. Excitation that exceeds its depression
causes network bursts; inhibition shortens them, makes them rare and finally prevents them, which
leaves tonic firing. Neurons fire as Poisson processes that follow their population, each with its
own strength, slow fluctuation, delay from the origin of a burst, and refractory time. No value here
is fitted to a recording; they were chosen to give rates and bursts as reported of cortical cultures
(bursts every few seconds, 0.1 to 1 s long).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toptune.machine.threads import compiled

# The paper's classes by their excitatory fraction.
EXCITATORY_FRACTIONS = {
    "100E0I": 1.0,
    "75E25I": 0.75,
    "50E50I": 0.5,
    "25E75I": 0.25,
    "0E100I": 0.0,
}

_STEP_S = 0.002
# Simulated and discarded, since populations start from rest.
_WARM_UP_S = 30.0
# SDs of a culture's true fraction around the plated one, and of its couplings around the norm.
_FRACTION_SD = 0.04
_COUPLING_SD = 0.08
_REFRACTORY_S = 0.003
# The firing rate of a typical neuron in a fully active population.
_GAIN_HZ = 60.0
_MEAN_UNITS = 2.2
_MAX_UNITS = 6
# The activity at which a burst starts, for which a new origin and new gains are drawn.
_BURST_LEVEL = 0.1
_BURST_PAUSE_S = 0.5
# The speed at which bursts spread, in micrometres per second.
_SPREAD_UM_S = 40_000.0


class Activity(NamedTuple):
    """The spikes of the neurons near the electrodes."""

    sample: NDArray[np.int64]  # (n,), spike times in samples, unit by unit
    unit: NDArray[np.int32]  # (n,), the neuron that fired
    electrode: NDArray[np.int32]  # (units,), the electrode that each neuron is near
    population: NDArray[np.float64]  # (steps, 2), activity of both populations, 0 to 1, every 2 ms


class _Bursts(NamedTuple):
    """The burst that each step belongs to (0 before the first), and the delays of each burst."""

    of_step: NDArray[np.int64]
    delay_steps: NDArray[np.int64]  # (bursts + 1, electrodes)


def simulate_activity(
    rng: np.random.Generator,
    excitatory_fraction: float,
    positions_um: NDArray[np.float64],
    *,
    n_samples: int,
    sampling_rate_hz: float,
) -> Activity:
    """Simulate one culture; two spikes of one neuron are at least 3 ms apart.

    `excitatory_fraction` (0 to 1) is that of the neurons plated; the culture's own differs by an SD
    of 0.04. `positions_um` (electrodes, 2) are in micrometres. `rng` is the source of all
    randomness.
    """
    fraction = float(np.clip(excitatory_fraction + rng.normal(0, _FRACTION_SD), 0, 1))
    n_steps = math.ceil(n_samples / sampling_rate_hz / _STEP_S)
    population = _populations(rng, fraction, n_steps)
    bursts = _bursts(rng, population.sum(axis=1), positions_um)
    n_units = np.minimum(rng.poisson(_MEAN_UNITS, len(positions_um)), _MAX_UNITS)
    electrode = np.repeat(np.arange(len(positions_um), dtype=np.int32), n_units)
    near = np.exp(rng.normal(0, 0.4, len(positions_um)))
    trains = []
    for at in electrode:
        excitatory = rng.random() < fraction
        rate_hz = _rate_hz(rng, population[:, 0 if excitatory else 1], bursts, int(at))
        times_s = _spike_times_s(rng, near[at] * rate_hz)
        sample = np.floor(times_s * sampling_rate_hz).astype(np.int64)
        trains.append(sample[sample < n_samples])
    sizes = [len(train) for train in trains]
    return Activity(
        sample=np.concatenate([np.empty(0, np.int64), *trains]),
        unit=np.repeat(np.arange(len(trains), dtype=np.int32), sizes),
        electrode=electrode,
        population=population,
    )


class _Couplings(NamedTuple):
    """Constants of the rate equations; inputs are in units of the half-activation input."""

    ee: float
    ei: float
    ie: float
    ii: float
    drive_e: float
    drive_i: float
    recovery_s: float


# Chosen by eye: a burst every 3 s or so in a purely excitatory culture, none in an inhibitory one.
_NORM = _Couplings(7.5, 4.0, 5.0, 3.0, 0.09, 0.16, 12.0)


def _populations(rng: np.random.Generator, fraction: float, n_steps: int) -> NDArray[np.float64]:
    strays = np.exp(rng.normal(0, _COUPLING_SD, len(_NORM)))
    c = _Couplings(*(np.array(_NORM) * strays))
    # Neurons connect to those present, so that few excitatory cells have more than their share.
    excitation, inhibition = fraction**0.5, 1 - fraction
    couplings = (
        *(c.ee * excitation, c.ei * inhibition, c.ie * excitation, c.ii * inhibition),
        *(c.drive_e, c.drive_i, c.recovery_s),
    )
    n_warm = round(_WARM_UP_S / _STEP_S)
    noise = rng.standard_normal((n_warm + n_steps, 2))
    activity = np.empty_like(noise)
    _integrate(np.array(couplings), noise, activity)
    return activity[n_warm:]


@compiled()
def _integrate(
    couplings: NDArray[np.float64], noise: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Integrate the rate equations in Euler steps of 2 ms."""
    ee, ei, ie, ii, drive_e, drive_i, recovery_s = couplings
    tau_e, tau_i, tau_noise, tau_adapt = 0.012, 0.016, 0.02, 1.0
    depression_hz, adaptation, noise_sd = 4.0, 0.3, 0.04
    kick = noise_sd * math.sqrt(2 * _STEP_S / tau_noise)
    e = i = adapted = noise_e = noise_i = 0.0
    resource = 0.5
    for t in range(len(noise)):
        noise_e += kick * noise[t, 0] - noise_e * _STEP_S / tau_noise
        noise_i += kick * noise[t, 1] - noise_i * _STEP_S / tau_noise
        input_e = max(0.0, ee * resource * e - ei * i + drive_e + noise_e - adapted)
        input_i = max(0.0, ie * resource * e - ii * i + drive_i + noise_i)
        resource += _STEP_S * ((1 - resource) / recovery_s - depression_hz * resource * e)
        adapted += _STEP_S / tau_adapt * (adaptation * e - adapted)
        e += _STEP_S / tau_e * (input_e * input_e / (1 + input_e * input_e) - e)
        i += _STEP_S / tau_i * (input_i * input_i / (1 + input_i * input_i) - i)
        out[t, 0] = e
        out[t, 1] = i


def _bursts(
    rng: np.random.Generator, activity: NDArray[np.float64], positions_um: NDArray[np.float64]
) -> _Bursts:
    """Draw for each burst one of three sites of the culture as its origin."""
    above = np.flatnonzero((activity[1:] >= _BURST_LEVEL) & (activity[:-1] < _BURST_LEVEL))
    pause = round(_BURST_PAUSE_S / _STEP_S)
    starts = above[np.diff(above, prepend=-pause) >= pause]
    # A little early, so that a burst's first spikes have its delays as well.
    of_step = np.searchsorted(starts - pause // 5, np.arange(len(activity)), side="right")
    low, high = positions_um.min(axis=0), positions_um.max(axis=0)
    sites = rng.uniform(low, high, (3, 2))
    origins = sites[rng.integers(0, len(sites), len(starts) + 1)]
    distance = np.linalg.norm(positions_um[None] - origins[:, None], axis=2)
    jitter = np.exp(rng.normal(0, 0.3, distance.shape))
    delay = np.rint(distance * jitter / _SPREAD_UM_S / _STEP_S).astype(np.int64)
    return _Bursts(of_step, delay)


def _rate_hz(
    rng: np.random.Generator,
    population: NDArray[np.float64],
    bursts: _Bursts,
    electrode: int,
) -> NDArray[np.float64]:
    """Return one neuron's firing rate in every step."""
    steps = np.arange(len(population)) - bursts.delay_steps[bursts.of_step, electrode]
    gain_hz = _GAIN_HZ * math.exp(rng.normal(0, 0.6))
    tonic_hz = 0.15 * math.exp(rng.normal(0, 0.8))
    # Neurons take part in bursts to different degrees.
    part = np.exp(rng.normal(0, 0.35, len(bursts.delay_steps)))[bursts.of_step]
    driven: NDArray[np.float64] = tonic_hz + gain_hz * part * population[np.maximum(steps, 0)]
    return driven * _fluctuation(rng, len(population))


def _fluctuation(rng: np.random.Generator, n_steps: int) -> NDArray[np.float64]:
    """Draw a neuron's slow fluctuation: log-normal, with a memory of 8 s and a mean of about 1."""
    block = round(0.2 / _STEP_S)
    n = n_steps // block + 2
    keep = math.exp(-0.2 / 8.0)
    walk = np.empty(n)
    kicks = rng.normal(0, math.sqrt(1 - keep * keep), n)
    walk[0] = rng.normal()
    for k in range(1, n):
        walk[k] = keep * walk[k - 1] + kicks[k]
    at = np.arange(n_steps) / block
    return np.exp(0.6 * np.interp(at, np.arange(n), walk) - 0.18)


def _spike_times_s(rng: np.random.Generator, rate_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw a Poisson process without spikes in the refractory time of the one before."""
    fired = np.flatnonzero(rng.random(len(rate_hz)) < rate_hz * _STEP_S)
    times_s = (fired + rng.random(len(fired))) * _STEP_S
    kept: NDArray[np.float64] = times_s[np.diff(times_s, prepend=-1.0) >= _REFRACTORY_S]
    return kept
