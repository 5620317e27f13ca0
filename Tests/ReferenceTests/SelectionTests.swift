// Index scores, selection and the indexer as a whole against golden vectors, and the mistakes that public
// implementations have made, each shown to be visible.

import TamisReference
import Testing

struct SelectionTests {
  let vectors: Vectors
  init() throws { vectors = try Vectors() }

  @Test func scoresAndSelectedSetsMatch() throws {
    let names = vectors.names("select_")
    #expect(names.count == 9)
    for name in names {
      let parameters = try vectors.parameters(name)
      let keys = try #require(parameters.keys)
      let scores = try indexScores(
        queries: vectors.numbers("\(name).q"), weights: vectors.numbers("\(name).w"),
        keys: vectors.numbers("\(name).k"), keyScales: vectors.numbers("\(name).key_scale"),
        heads: #require(parameters.heads), dim: #require(parameters.dim))
      #expect(largestDifference(scores, try vectors.numbers("\(name).scores")) < 1e-13, "\(name)")
      let visible = try vectors.integers("\(name).visible")
      for k in try #require(parameters.k).values {
        let selected = selectRows(scores, keys: keys, k: k, visible: visible)
        #expect(selected == (try vectors.integers("\(name).selected_\(k)")), "\(name), k = \(k)")
      }
    }
  }

  @Test func theDefaultIsCausalBottomRight() throws {
    for name in ["select_64x128_i8", "select_more_queries_bf16"] {
      let parameters = try vectors.parameters(name)
      let (queries, keys) = (try #require(parameters.queries), try #require(parameters.keys))
      #expect(causalVisible(queries: queries, keys: keys) == (try vectors.integers("\(name).visible")))
      let k = try #require(parameters.k).values[1]
      let selected = try selectKeys(
        queries: vectors.numbers("\(name).q"), weights: vectors.numbers("\(name).w"),
        keys: vectors.numbers("\(name).k"), keyScales: vectors.numbers("\(name).key_scale"),
        heads: #require(parameters.heads), dim: #require(parameters.dim), k: k)
      #expect(selected == (try vectors.integers("\(name).selected_\(k)")))
    }
  }

  @Test func topKMatches() throws {
    let scores = try vectors.numbers("topk.scores")
    let width = try vectors.shape("topk.scores")[1]
    let rows = scores.count / width
    for name in vectors.names("topk_") {
      let parameters = try vectors.parameters(name)
      let k = try #require(parameters.k).values[0]
      let visible = Array(repeating: try #require(parameters.visible), count: rows)
      let selected = selectRows(scores, keys: width, k: k, visible: visible)
      #expect(selected == (try vectors.integers("\(name).selected")), "\(name)")
    }
  }

  @Test func topKKeepsItsPromises() {
    #expect(topK([3, 1, 2], k: 2) == [0, 2])
    #expect(topK([1, 1, 1, 1], k: 2) == [0, 1])
    #expect(topK([1, 5, 9], k: 2, visible: 0) == [-1, -1])
    #expect(topK([], k: 1) == [-1])
    #expect(topK([.nan, -.infinity, -7], k: 1) == [2])
    #expect(topK([.nan, -.infinity, -7], k: 2) == [0, 2])
    #expect(topK([1e-8, 2e-8, 3e-8], k: 1) == [2])
  }

  @Test func unseenScoresAreMinusInfinity() {
    #expect(maskUnseen([1, 2, 3, 4, 5, 6], keys: 3) == [1, 2, -.infinity, 4, 5, 6])
    #expect(maskUnseen([1, 2, 3], keys: 3, visible: [0]) == [-.infinity, -.infinity, -.infinity])
  }

  @Test func futureKeysAreNeverSelected() {
    var random = SplitMix64(seed: 21)
    let selected = selectRows(random.normals(30 * 30), keys: 30, k: 8)
    for t in 0..<30 {
      let row = selected[t * 8..<(t + 1) * 8].filter { $0 >= 0 }
      #expect(row.count == min(8, t + 1))
      #expect(row.allSatisfy { $0 <= t })
      if t < 8 { #expect(row == Array(0...t)) }
    }
  }

  @Test func aNegativeProductContributesNothing() {
    // Head 0 likes key 0; head 1 strongly dislikes it. Without the ReLU, key 1 would win.
    let queries: [Double] = [1, 0, -9, 0]
    let keys: [Double] = [1, 0, 0.5, 0]
    let scores = indexScores(queries: queries, weights: [1, 1], keys: keys, heads: 2, dim: 2)
    #expect(scores == [1, 0.5])
  }

  @Test func aNegativeWeightMakesANegativeScore() {
    let scores = indexScores(
      queries: [1, 0], weights: [-2], keys: [3, 0, -3, 0], keyScales: [0.5, 1], heads: 1, dim: 2)
    #expect(scores[0] == -3)
    #expect(topK(scores, k: 1) == [1])
  }

  @Test func aNaNStaysNaN() {
    let scores = indexScores(queries: [1, 1], weights: [1], keys: [.nan, 0, 1, 1], heads: 1, dim: 2)
    #expect(scores[0].isNaN && scores[1] == 2)
  }

  @Test func positiveScalesCommuteWithTheReLU() {
    var random = SplitMix64(seed: 22)
    let (queries, keys) = (random.normals(3 * 4 * 16), random.normals(10 * 16))
    let (weights, queryScales) = (random.normals(3 * 4), (0..<12).map { _ in 0.5 + random.uniform() })
    let folded = foldedHeadWeights(weights, queryScales: queryScales, heads: 4, dim: 16)
    let scaled = queries.indices.map { queries[$0] * queryScales[$0 / 16] / (4.0 * 2.0) }
    let expected = indexScores(queries: scaled, weights: weights, keys: keys, heads: 4, dim: 16)
    let actual = indexScores(queries: queries, weights: folded, keys: keys, heads: 4, dim: 16)
    #expect(largestDifference(actual, expected) < 1e-13)
    let v32 = foldedHeadWeights([1], queryScales: [1], heads: 64, dim: 128)[0]
    #expect((v32 - 0.01104854).magnitude < 5e-9)
  }

  @Test func hadamardOnBothSidesChangesNothingAndOnOneSideEverything() {
    var random = SplitMix64(seed: 23)
    let (queries, keys, weights) = (random.normals(2 * 4 * 128), random.normals(20 * 128), random.normals(2 * 4))
    func scores(_ q: [Double], _ k: [Double]) -> [Double] {
      indexScores(queries: q, weights: weights, keys: k, heads: 4, dim: 128)
    }
    let (rotatedQueries, rotatedKeys) = (rotateHadamard(queries, length: 128), rotateHadamard(keys, length: 128))
    let plain = scores(queries, keys)
    #expect(largestDifference(scores(rotatedQueries, rotatedKeys), plain) < 1e-12)
    #expect(largestDifference(scores(rotatedQueries, keys), plain) > 0.5)
    #expect(largestDifference(rotateHadamard(rotatedKeys, length: 128), keys) < 1e-13)
  }
}

/// The indexer of DeepSeek-V3.2 put together from the reference's parts, with one part changeable.
struct IndexerTests {
  let vectors: Vectors
  let parameters: Vectors.Case
  let tokens, heads, dim, k: Int

  init() throws {
    vectors = try Vectors()
    parameters = try vectors.parameters("indexer")
    tokens = try #require(parameters.tokens)
    heads = try #require(parameters.heads)
    dim = try #require(parameters.dim)
    k = try #require(parameters.k?.values.first)
  }

  private func project(_ x: String, _ weight: String) throws -> [Double] {
    try TamisReference.project(
      vectors.numbers(x), weight: vectors.numbers(weight), inputs: vectors.shape(weight)[1])
  }

  private func normalized(_ keys: [Double], bias: Bool = true, mean: Bool = true) throws -> [Double] {
    let weight = try vectors.numbers("indexer.k_norm_weight")
    let offset = try bias ? vectors.numbers("indexer.k_norm_bias") : Array(repeating: 0, count: dim)
    return (0..<tokens).flatMap { t in
      let key = Array(keys[t * dim..<(t + 1) * dim])
      return mean
        ? layerNorm(key, weight: weight, bias: offset)
        : zip(rmsNorm(key, weight: weight), offset).map { $0 + $1 }
    }
  }

  /// Rope, Hadamard and FP8 of vectors [tokens, heads, dim].
  private func prepared(_ x: [Double], heads: Int, pairing: RopePairing, start: Int) throws -> Quantized<UInt8> {
    let rotary = try #require(parameters.rotary)
    let first = try #require(parameters.firstPosition)
    let frequencies = yarnFrequencies(dim: rotary)
    var turned: [Double] = []
    for row in 0..<x.count / dim {
      let vector = Array(x[row * dim..<(row + 1) * dim])
      let position = first + row / heads
      turned += rope(vector, position: position, frequencies: frequencies, pairing: pairing, start: start)
    }
    return quantizeE4M3(rotateHadamard(turned, length: dim), block: dim, powerOfTwo: true)
  }

  private func run(
    pairing: RopePairing = .halfSplit, start: Int = 0, bias: Bool = true, mean: Bool = true
  ) throws -> (query: Quantized<UInt8>, key: Quantized<UInt8>, scores: [Double], selected: [Int]) {
    let query = try prepared(project("indexer.qr", "indexer.wq_b"), heads: heads, pairing: pairing, start: start)
    let keys = try normalized(project("indexer.x", "indexer.wk"), bias: bias, mean: mean)
    let key = try prepared(keys, heads: 1, pairing: pairing, start: start)
    let weights = try foldedHeadWeights(
      project("indexer.x", "indexer.weights_proj"), queryScales: query.scales, heads: heads, dim: dim)
    let scores = indexScores(
      queries: query.codes.map(decodeE4M3), weights: weights, keys: key.codes.map(decodeE4M3),
      keyScales: key.scales, heads: heads, dim: dim)
    return (query, key, scores, selectRows(scores, keys: tokens, k: k))
  }

  @Test func theWholeIndexerMatches() throws {
    let result = try run()
    #expect(result.query.codes == (try vectors.bytes("indexer.query_codes")))
    #expect(result.query.scales == (try vectors.numbers("indexer.query_scales")))
    #expect(result.key.codes == (try vectors.bytes("indexer.key_codes")))
    #expect(result.key.scales == (try vectors.numbers("indexer.key_scales")))
    #expect(largestDifference(result.scores, try vectors.numbers("indexer.scores")) < 1e-12)
    #expect(result.selected == (try vectors.integers("indexer.selected")))
  }

  @Test func theWrongRopePairingSelectsOtherKeys() throws {
    #expect(try run(pairing: .interleaved).selected != vectors.integers("indexer.selected"))
  }

  @Test func theWrongRopePositionInTheVectorSelectsOtherKeys() throws {
    let last = dim - (try #require(parameters.rotary))
    #expect(try run(start: last).selected != vectors.integers("indexer.selected"))
  }

  @Test func aDroppedKeyNormBiasSelectsOtherKeys() throws {
    #expect(try run(bias: false).selected != vectors.integers("indexer.selected"))
  }

  @Test func anRMSNormInPlaceOfTheLayerNormSelectsOtherKeys() throws {
    #expect(try run(mean: false).selected != vectors.integers("indexer.selected"))
  }
}
