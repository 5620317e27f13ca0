// Attention, merging, rope and norms of the reference against golden vectors, and what must hold between them.

import TamisReference
import Testing

struct AttentionTests {
  let vectors: Vectors
  init() throws { vectors = try Vectors() }

  private func optional<T>(_ name: String, _ read: (String) throws -> T) rethrows -> T? {
    vectors.has(name) ? try read(name) : nil
  }

  private func shape(_ name: String) throws -> AttentionShape {
    let parameters = try vectors.parameters(name)
    return try AttentionShape(
      queries: #require(parameters.queries), keys: #require(parameters.keys), heads: #require(parameters.heads),
      keyHeads: #require(parameters.keyHeads), keyDim: #require(parameters.keyDim),
      valueDim: #require(parameters.valueDim))
  }

  private func run(_ name: String, sink: [Double]? = nil, causalByDefault: Bool = false) throws -> Attended {
    try attend(
      shape(name), queries: vectors.numbers("\(name).q"), keys: vectors.numbers("\(name).k"),
      values: optional("\(name).v", vectors.numbers), scale: #require(vectors.parameters(name).scale),
      indices: optional("\(name).indices", vectors.integers),
      visible: causalByDefault ? nil : optional("\(name).visible", vectors.integers), sink: sink)
  }

  @Test func everyShapeMatches() throws {
    let names = vectors.names("attend_")
    #expect(names.count == 10)
    for name in names {
      let result = try run(name, sink: optional("\(name).sink", vectors.numbers))
      #expect(largestDifference(result.out, try vectors.numbers("\(name).out")) < 1e-11, "\(name)")
      #expect(largestDifference(result.lse, try vectors.numbers("\(name).lse")) < 1e-12, "\(name)")
    }
  }

  @Test func theDefaultIsCausalBottomRight() throws {
    for name in ["attend_mla_dense", "attend_mla_more_queries", "attend_mha"] {
      #expect(try run(name, causalByDefault: true).out == run(name).out, "\(name)")
    }
  }

  @Test func aRowWithoutKeysGivesZero() throws {
    let result = try run("attend_mla_more_queries")
    // 5 queries of 3 keys: rows 0 and 1 see nothing. 4 heads, 16 dimensions.
    #expect(result.out[..<(2 * 4 * 16)].allSatisfy { $0 == 0 })
    #expect(result.lse[..<8].allSatisfy { $0 == -.infinity })
    #expect(result.lse[8...].allSatisfy { $0.isFinite })
    let sunk = try run("attend_mla_more_queries", sink: [1, 2, 3, 4])
    #expect(sunk.out[..<(2 * 4 * 16)].allSatisfy { $0 == 0 })
    #expect(largestDifference(Array(sunk.lse[..<8]), [1, 2, 3, 4, 1, 2, 3, 4]) < 1e-15)
  }

  @Test func aSinkIsAPartialResultWithoutValues() throws {
    for name in ["attend_mla_sparse_sink", "attend_gqa_dense_sink"] {
      let sink = try vectors.numbers("\(name).sink")
      let (together, without) = (try run(name, sink: sink), try run(name))
      let alone = Attended(
        out: Array(repeating: 0, count: without.out.count), lse: without.lse.indices.map { sink[$0 % sink.count] })
      let merged = mergeAttended(without, alone)
      #expect(largestDifference(merged.out, together.out) < 1e-13)
      #expect(largestDifference(merged.lse, together.lse) < 1e-13)
      #expect(largestDifference(without.out, together.out) > 1e-3)
    }
  }

  @Test func sparseOverEveryVisibleKeyIsDense() throws {
    let name = "attend_gqa_dense"
    let form = try shape(name)
    let visible = try vectors.integers("\(name).visible")
    let all = visible.flatMap { Array(0..<$0) + Array(repeating: -1, count: form.keys - $0) }
    let sparse = try attend(
      form, queries: vectors.numbers("\(name).q"), keys: vectors.numbers("\(name).k"),
      values: vectors.numbers("\(name).v"), scale: #require(vectors.parameters(name).scale), indices: all)
    let dense = try run(name)
    #expect(sparse.out == dense.out && sparse.lse == dense.lse)
  }

  @Test func absorbedAndExpandedMLAAgree() {
    // q . (W_UK c) = (W_UK^T q) . c: a query against expanded keys or, absorbed, against the latents themselves.
    var random = SplitMix64(seed: 31)
    let (keys, heads, latent, nope, rotary, value) = (7, 3, 8, 5, 4, 6)
    let (c, keyRope) = (random.normals(keys * latent), random.normals(keys * rotary))
    let (query, queryRope) = (random.normals(heads * nope), random.normals(heads * rotary))
    let (up, upValue) = (random.normals(heads * nope * latent), random.normals(heads * value * latent))

    func row(_ x: [Double], _ i: Int, _ width: Int) -> [Double] { Array(x[i * width..<(i + 1) * width]) }
    func transposed(_ x: [Double], rows: Int, columns: Int) -> [Double] {
      (0..<rows * columns).map { x[$0 % rows * columns + $0 / rows] }
    }
    var (absorbed, expandedQuery): ([Double], [Double]) = ([], [])
    for h in 0..<heads {
      let upTransposed = transposed(row(up, h, nope * latent), rows: nope, columns: latent)
      absorbed += project(row(query, h, nope), weight: upTransposed, inputs: nope) + row(queryRope, h, rotary)
      expandedQuery += row(query, h, nope) + row(queryRope, h, rotary)
    }
    var (latentKeys, expandedKeys, expandedValues): ([Double], [Double], [Double]) = ([], [], [])
    for s in 0..<keys {
      latentKeys += row(c, s, latent) + row(keyRope, s, rotary)
      for h in 0..<heads {
        expandedKeys += project(row(c, s, latent), weight: row(up, h, nope * latent), inputs: latent)
        expandedKeys += row(keyRope, s, rotary)
        expandedValues += project(row(c, s, latent), weight: row(upValue, h, value * latent), inputs: latent)
      }
    }

    let mqa = attend(
      AttentionShape(queries: 1, keys: keys, heads: heads, keyDim: latent + rotary, valueDim: latent),
      queries: absorbed, keys: latentKeys, scale: 0.3)
    let mha = attend(
      AttentionShape(queries: 1, keys: keys, heads: heads, keyHeads: heads, keyDim: nope + rotary, valueDim: value),
      queries: expandedQuery, keys: expandedKeys, values: expandedValues, scale: 0.3)
    let outputs = (0..<heads).flatMap { h in
      project(row(mqa.out, h, latent), weight: row(upValue, h, value * latent), inputs: latent)
    }
    #expect(largestDifference(mqa.lse, mha.lse) < 1e-13)
    #expect(largestDifference(outputs, mha.out) < 1e-13)
  }

  @Test func mergingMatches() throws {
    func side(_ name: String) throws -> Attended {
      try Attended(out: vectors.numbers("merge.out_\(name)"), lse: vectors.numbers("merge.lse_\(name)"))
    }
    let (a, b, both) = (try side("a"), try side("b"), try side("both"))
    for merged in [mergeAttended(a, b), mergeAttended(b, a)] {
      #expect(largestDifference(merged.out, both.out) < 1e-13)
      #expect(largestDifference(merged.lse, both.lse) < 1e-13)
    }
  }

  @Test func mergingIsAssociativeAtAnyMagnitude() {
    let parts = [-900.0, 900, 0, -.infinity].map { Attended(out: [$0.isFinite ? $0 / 900 : 7], lse: [$0]) }
    let left = parts.reduce(Attended(out: [0], lse: [-.infinity]), mergeAttended)
    #expect(left.out == [1] && left.lse == [900])
  }
}

struct LayerTests {
  let vectors: Vectors
  init() throws { vectors = try Vectors() }

  @Test func yarnMatches() throws {
    let frequencies = yarnFrequencies(dim: 64)
    #expect(largestDifference(frequencies, try vectors.numbers("yarn.frequencies")) < 1e-15)
    let plain = ropeFrequencies(dim: 64, theta: 10000)
    #expect(frequencies[10] == plain[10] && frequencies[11] < plain[11])
    #expect((frequencies[23] * 40 / plain[23] - 1).magnitude < 1e-12)
    let scale = try #require(vectors.parameters("yarn").softmaxScale)
    #expect((yarnSoftmaxScale(keyDim: 192) - scale).magnitude < 1e-15)
    #expect((yarnSoftmaxScale(keyDim: 192) - 0.1352338).magnitude < 5e-8)
  }

  @Test func bothRopePairingsMatch() throws {
    let x = try vectors.numbers("rope.x")
    let positions = try vectors.integers("rope.positions")
    let frequencies = yarnFrequencies(dim: 64)
    for (pairing, name) in [(RopePairing.interleaved, "interleaved"), (.halfSplit, "half_split")] {
      let y = positions.indices.flatMap { t in
        rope(Array(x[t * 64..<(t + 1) * 64]), position: positions[t], frequencies: frequencies, pairing: pairing)
      }
      #expect(largestDifference(y, try vectors.numbers("rope.\(name)")) < 1e-10, "\(name)")
    }
  }

  @Test func ropeTurnsOnlyItsDimensionsAndDependsOnDistanceOnly() {
    var random = SplitMix64(seed: 41)
    let (q, k) = (random.normals(96), random.normals(96))
    let frequencies = yarnFrequencies(dim: 64)
    for pairing in [RopePairing.interleaved, .halfSplit] {
      func product(_ i: Int, _ j: Int) -> Double {
        let a = rope(q, position: i, frequencies: frequencies, pairing: pairing, start: 32)
        let b = rope(k, position: j, frequencies: frequencies, pairing: pairing, start: 32)
        #expect(a[..<32] == q[..<32])
        return zip(a, b).reduce(0) { $0 + $1.0 * $1.1 }
      }
      #expect((product(1000, 990) - product(20, 10)).magnitude < 1e-9)
      #expect((product(20, 10) - product(20, 11)).magnitude > 1e-6)
    }
  }

  @Test func normsMatch() throws {
    let (x, weight, bias) = (
      try vectors.numbers("norms.x"), try vectors.numbers("norms.weight"), try vectors.numbers("norms.bias")
    )
    let rows = stride(from: 0, to: x.count, by: 128).map { Array(x[$0..<$0 + 128]) }
    let rms = rows.flatMap { rmsNorm($0, weight: weight) }
    let layer = rows.flatMap { layerNorm($0, weight: weight, bias: bias) }
    #expect(largestDifference(rms, try vectors.numbers("norms.rms")) < 1e-12)
    #expect(largestDifference(layer, try vectors.numbers("norms.layer")) < 1e-9)
    // Mean 100, deviation 0.01: the epsilon of 1e-6 is felt, a larger one more.
    let wide = layerNorm(rows[3], weight: weight, bias: bias, epsilon: 1e-5)
    #expect(largestDifference(wide, Array(layer[384...])) > 1e-2)
  }

  @Test func theGeneratorIsSplitMix64() {
    var random = SplitMix64(seed: 1_234_567)
    #expect(
      [random.next(), random.next(), random.next()] == [
        6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423,
      ])
    let x = random.normals(20000)
    let mean = x.reduce(0, +) / 20000
    let variance = x.reduce(0) { $0 + $1 * $1 } / 20000
    #expect(mean.magnitude < 0.03 && (variance - 1).magnitude < 0.05)
    #expect(x.allSatisfy { Double(Float($0)) == $0 })
  }
}
