// What surrounds the three verbs in a layer: linear projection, normalisation, rotary position embedding and its
// YaRN frequencies. It refuses learned parameters of its own: all of them are arguments.

#if canImport(Darwin)
  import Darwin
#elseif canImport(Musl)
  import Musl
#else
  import Glibc
#endif

/// y_ro = sum_i x_ri * weight_oi: x [rows, inputs], weight [outputs, inputs], result [rows, outputs].
public func project(_ x: [Double], weight: [Double], inputs: Int) -> [Double] {
  (0..<x.count / inputs).flatMap { r in
    (0..<weight.count / inputs).map { o in dot(x, r * inputs, weight, o * inputs, count: inputs) }
  }
}

/// y_i = x_i / sqrt(mean(x^2) + epsilon) * weight_i
public func rmsNorm(_ x: [Double], weight: [Double], epsilon: Double = 1e-6) -> [Double] {
  let meanSquare = x.reduce(0) { $0 + $1 * $1 } / Double(x.count)
  let factor = 1 / (meanSquare + epsilon).squareRoot()
  return zip(x, weight).map { $0 * factor * $1 }
}

/// y_i = (x_i - mean x) / sqrt(variance x + epsilon) * weight_i + bias_i, with the variance over n (not n - 1).
/// This is the k_norm of the indexer: a true LayerNorm, mean and bias included.
public func layerNorm(_ x: [Double], weight: [Double], bias: [Double], epsilon: Double = 1e-6) -> [Double] {
  let mean = x.reduce(0, +) / Double(x.count)
  let variance = x.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(x.count)
  let factor = 1 / (variance + epsilon).squareRoot()
  return x.indices.map { (x[$0] - mean) * factor * weight[$0] + bias[$0] }
}

/// Which two dimensions of a rotary part of 2 n dimensions form pair i.
public enum RopePairing: Sendable {
  case interleaved  // (2i, 2i + 1): MLA, and the indexer of GLM
  case halfSplit  // (i, i + n), "NeoX": the indexer of DeepSeek-V3.2
}

/// Rotary position embedding of dimensions start ..< start + 2 * frequencies.count of one vector; the rest passes
/// through. Pair i turns by the angle position * frequencies[i]:
///
///     (a, b) -> (a cos - b sin, a sin + b cos)
///
/// The result stays in the order of the input. DeepSeek-V3.2 rotates the last 64 dimensions of an MLA query and
/// key (interleaved) but the first 64 of an indexer query and key (half-split).
public func rope(
  _ x: [Double], position: Int, frequencies: [Double], pairing: RopePairing, start: Int = 0
) -> [Double] {
  let pairs = frequencies.count
  var y = x
  for i in 0..<pairs {
    let first = start + (pairing == .interleaved ? 2 * i : i)
    let second = first + (pairing == .interleaved ? 1 : pairs)
    let angle = Double(position) * frequencies[i]
    y[first] = x[first] * cos(angle) - x[second] * sin(angle)
    y[second] = x[first] * sin(angle) + x[second] * cos(angle)
  }
  return y
}

/// f_i = theta^(-2i/dim), i = 0 ..< dim/2.
public func ropeFrequencies(dim: Int, theta: Double) -> [Double] {
  (0..<dim / 2).map { pow(theta, -2 * Double($0) / Double(dim)) }
}

/// The parameters of YaRN as config.json names them; the defaults are those of DeepSeek-V3.2.
public struct Yarn: Sendable {
  public var theta = 10000.0
  public var factor = 40.0
  public var originalPositions = 4096.0
  public var betaFast = 32.0
  public var betaSlow = 1.0
  public var mscale = 1.0

  public init() {}
}

/// The YaRN frequencies: fast dimensions keep f_i, slow ones turn `factor` times slower, a ramp between.
///
///     c(r) = dim * ln(originalPositions / (2 pi r)) / (2 ln theta)
///     low = max(floor c(betaFast), 0);  high = min(ceil c(betaSlow), dim - 1)
///     ramp_i = clamp((i - low) / (high - low), 0, 1)
///     f'_i = f_i (1 - ramp_i) + f_i / factor * ramp_i
///
/// Applied at every position, short prompts included; cosine and sine are not scaled.
public func yarnFrequencies(dim: Int, _ yarn: Yarn = Yarn()) -> [Double] {
  func correction(_ rotations: Double) -> Double {
    Double(dim) * log(yarn.originalPositions / (2 * Double.pi * rotations)) / (2 * log(yarn.theta))
  }
  let low = max(correction(yarn.betaFast).rounded(.down), 0)
  let high = min(correction(yarn.betaSlow).rounded(.up), Double(dim - 1))
  let width = high == low ? 0.001 : high - low
  return ropeFrequencies(dim: dim, theta: yarn.theta).enumerated().map { i, frequency in
    let ramp = min(max((Double(i) - low) / width, 0), 1)
    return frequency * (1 - ramp) + frequency / yarn.factor * ramp
  }
}

/// The softmax scale of MLA under YaRN: keyDim^-1/2 * m^2, m = 0.1 mscale ln(factor) + 1. `keyDim` is the width
/// before absorption: 192 for DeepSeek-V3.2, which gives 0.1352338.
public func yarnSoftmaxScale(keyDim: Int, _ yarn: Yarn = Yarn()) -> Double {
  let m = yarn.factor > 1 ? 0.1 * yarn.mscale * log(yarn.factor) + 1 : 1
  return m * m / Double(keyDim).squareRoot()
}
