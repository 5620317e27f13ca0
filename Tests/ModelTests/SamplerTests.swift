// The sampler against what its options mean: counts over many draws, cuts that are never crossed, the same text for
// the same seed.

import Foundation
import TamisModel
import TamisRuntime
import Testing

@Suite struct SamplerTests {
  private func next(_ logits: [Float], draws: UInt64 = 0, _ change: (inout SamplerOptions) -> Void = { _ in })
    throws -> Int32
  {
    var options = SamplerOptions()
    change(&options)
    return try logits.withUnsafeBufferPointer { try Sampler.next(.unmetered, $0, options, draws: draws) }
  }

  /// How often each token comes in `count` draws.
  private func counts(_ logits: [Float], _ count: Int, _ change: (inout SamplerOptions) -> Void) throws -> [Int] {
    var counts = Array(repeating: 0, count: logits.count)
    for draw in 0..<count { counts[Int(try next(logits, draws: UInt64(draw), change))] += 1 }
    return counts
  }

  @Test func greedyIsTheBestAndTheFirstOfEquals() throws {
    #expect(try next([1, 3, 2]) == 1)
    #expect(try next([1, 3, 3]) == 1)
    #expect(try next([.nan, -5, -.infinity]) == 1)
    #expect(try next([0, .infinity, 0]) { $0.temperature = 1 } == 1)
  }

  /// Probabilities 0.1, 0.2, 0.3, 0.4: 20,000 draws stay within four standard deviations.
  @Test func drawsFollowTheProbabilities() throws {
    let logits: [Float] = [0.1, 0.2, 0.3, 0.4].map { log($0) }
    let counts = try counts(logits, 20_000) {
      $0.temperature = 1
      $0.seed = 11
    }
    for (token, count) in counts.enumerated() {
      let p = 0.1 * Double(token + 1)
      #expect(abs(Double(count) - 20_000 * p) < 4 * (20_000 * p * (1 - p)).squareRoot(), "\(token): \(count)")
    }
  }

  /// At temperature 1/2 probabilities are squared: 1, 4, 9, 16 of 30.
  @Test func temperatureSharpens() throws {
    let logits: [Float] = [0.1, 0.2, 0.3, 0.4].map { log($0) }
    let counts = try counts(logits, 20_000) { $0.temperature = 0.5 }
    for (token, count) in counts.enumerated() {
      let p = Double((token + 1) * (token + 1)) / 30
      #expect(abs(Double(count) - 20_000 * p) < 4 * (20_000 * p * (1 - p)).squareRoot(), "\(token): \(count)")
    }
  }

  @Test func cutsAreNotCrossed() throws {
    let logits: [Float] = [0.1, 0.4, 0.2, 0.3].map { log($0) }
    #expect(try counts(logits, 500) { ($0.temperature, $0.topK) = (1, 2) }.map { $0 > 0 } == [false, true, false, true])
    #expect(try counts(logits, 500) { ($0.temperature, $0.topK) = (1, 1) } == [0, 500, 0, 0])
    // 0.4 is not half; 0.4 + 0.3 is.
    let half = try counts(logits, 500) { ($0.temperature, $0.topP) = (1, 0.5) }
    #expect(half.map { $0 > 0 } == [false, true, false, true])
    #expect(try counts(logits, 500) { ($0.temperature, $0.topP) = (1, 0.39) } == [0, 500, 0, 0])
    // Among the best two 0.4 has 4 of 7.
    #expect(try counts(logits, 500) { ($0.temperature, $0.topK, $0.topP) = (1, 2, 0.5) } == [0, 500, 0, 0])
  }

  @Test func impossibleTokensAreNotDrawn() throws {
    let counts = try counts([.nan, 0, -.infinity, 0], 500) { $0.temperature = 1e6 }
    #expect(counts[0] == 0 && counts[2] == 0 && counts[1] > 0 && counts[3] > 0)
    #expect(throws: TamisError.self) { try next([.nan, -.infinity]) }
    #expect(throws: TamisError.self) { try next([]) }
  }

  @Test func aSeedIsAText() throws {
    let logits = (0..<50).map { Float($0 % 7) * 0.1 }
    func text(_ seed: UInt64) throws -> [Int32] {
      try (0..<40).map { draw in
        try next(logits, draws: draw) {
          $0.temperature = 1
          $0.seed = seed
        }
      }
    }
    #expect(try text(5) == text(5))
    #expect(try text(5) != text(6))
  }

  @Test func optionsOutOfRangeAreRefused() {
    #expect(throws: TamisError.self) { try next([1, 2]) { $0.temperature = -1 } }
    #expect(throws: TamisError.self) { try next([1, 2]) { $0.temperature = .nan } }
    #expect(throws: TamisError.self) { try next([1, 2]) { $0.topK = -1 } }
    #expect(throws: TamisError.self) { try next([1, 2]) { $0.topP = 0 } }
    #expect(throws: TamisError.self) { try next([1, 2]) { $0.topP = 1.5 } }
  }
}
