// Chooses the next token from logits: a pure function of the logits, the options and the number of the draw, so a
// text can be made again from its seed. It refuses options out of range; NaN logits are never chosen, and where no
// logit can be chosen it says so.

import Glibc
package import TamisRuntime

package struct SamplerOptions: Sendable {
  /// 0: greedy, whatever the others say.
  package var temperature: Float = 0
  /// Only the best k; 0: all.
  package var topK = 0
  /// Only the best tokens that together reach this probability; 1: all. Applied after topK, as transformers does.
  package var topP: Float = 1
  package var seed: UInt64 = 0

  package init() {}

  func check() throws(TamisError) {
    guard temperature >= 0, temperature <= 1e6, topK >= 0, topP > 0, topP <= 1 else {
      throw TamisError(.argument, "sampler: temperature is 0 to 1e6, top_k at least 0, top_p above 0 and up to 1")
    }
  }
}

package enum Sampler {
  /// The token after `draws` earlier ones. Equal logits: the lower token first. Scratch comes from the context.
  package static func next(
    _ context: Context, _ logits: UnsafeBufferPointer<Float>, _ options: SamplerOptions, draws: UInt64
  ) throws(TamisError) -> Int32 {
    try options.check()
    guard logits.count <= Int(Int32.max) else { throw TamisError(.unsupported, "sampler: more than 2^31-1 logits") }
    guard let best = best(logits) else { throw TamisError(.argument, "sampler: no logit is a number above -infinity") }
    guard options.temperature > 0, logits[best] < .infinity else { return Int32(truncatingIfNeeded: best) }
    let bytes = try Size.product(logits.count, 4)
    let scratch = try context.borrowScratch(bytes: bytes)
    defer { context.returnScratch(scratch) }
    let tokens = UnsafeMutableBufferPointer(
      start: scratch.pointer.assumingMemoryBound(to: Int32.self), count: logits.count)
    let weights = Weights(logits: logits, most: logits[best], temperature: options.temperature)
    let chosen = candidates(weights, options, tokens)
    return draw(chosen, weights, at: uniform(options.seed, draws))
  }

  private static func best(_ logits: UnsafeBufferPointer<Float>) -> Int? {
    var best: Int?
    for (i, logit) in logits.enumerated() where logit > best.map({ logits[$0] }) ?? -.infinity { best = i }
    return best
  }

  /// Probabilities up to a factor; NaN and -infinity: 0.
  private struct Weights {
    let logits: UnsafeBufferPointer<Float>
    let most: Float
    let temperature: Float

    func callAsFunction(_ token: Int32) -> Double {
      let logit = logits[Int(token)]
      return logit.isNaN ? 0 : exp(Double(logit - most) / Double(temperature))
    }
  }

  /// The tokens that may be drawn, in `tokens`: all of them in order, or the best ones from the best on.
  private static func candidates(
    _ weight: Weights, _ options: SamplerOptions, _ tokens: UnsafeMutableBufferPointer<Int32>
  ) -> Slice<UnsafeMutableBufferPointer<Int32>> {
    var tokens = tokens
    for i in tokens.indices { tokens[i] = Int32(truncatingIfNeeded: i) }
    let cutsK = options.topK > 0 && options.topK < tokens.count
    guard cutsK || options.topP < 1 else { return tokens[...] }
    func rank(_ token: Int32) -> Float { weight.logits[Int(token)].isNaN ? -.infinity : weight.logits[Int(token)] }
    tokens.sort { (rank($1), $0) < (rank($0), $1) }
    let kept = cutsK ? tokens[..<options.topK] : tokens[...]
    guard options.topP < 1 else { return kept }
    let enough = kept.reduce(0) { $0 + weight($1) } * Double(options.topP)
    var sum = 0.0
    var end = 0
    while end < kept.count, sum < enough {
      sum += weight(kept[end])
      end &+= 1
    }
    return tokens[..<end]
  }

  /// The token in whose share of the sum the point (0 ..< 1) lies.
  private static func draw(
    _ tokens: Slice<UnsafeMutableBufferPointer<Int32>>, _ weight: Weights, at point: Double
  ) -> Int32 {
    let target = tokens.reduce(0) { $0 + weight($1) } * point
    var sum = 0.0
    var last: Int32 = 0
    for token in tokens {
      let share = weight(token)
      guard share > 0 else { continue }
      sum += share
      last = token
      if sum > target { break }
    }
    return last
  }

  /// SplitMix64 (Steele, Lea and Flood, 2014), the draws-th number of the seed's sequence, in 0 ..< 1.
  private static func uniform(_ seed: UInt64, _ draws: UInt64) -> Double {
    var z = seed &+ (draws &+ 1) &* 0x9E37_79B9_7F4A_7C15
    z = (z ^ (z &>> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z &>> 27)) &* 0x94D0_49BB_1331_11EB
    return Double((z ^ (z &>> 31)) &>> 11) * 0x1p-53
  }
}
