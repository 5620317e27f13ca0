// The trained toy checkpoint against the logits that Hugging Face transformers computes for it in fp32
// (golden_hf_fp32.safetensors), and the same answers whatever the pieces, the neighbours and the threads. Measured
// on AVX-512: 8.8e-7 of the largest logit without selection, 1.9e-5 with 64 of 512 keys.

import TamisCache
import TamisModel
import TamisOperators
import TamisRuntime
import Testing

@Suite struct ParityTests {
  let golden: Golden
  let tokens: [Int32]

  init() throws {
    golden = try Golden(Toy.folder.appendingPathComponent("golden_hf_fp32.safetensors").path)
    tokens = try golden.integers("input_ids")
  }

  @Test(arguments: [512, 64])
  func logitsAreThoseOfTransformers(topK: Int) throws {
    let logits = try Toy.exact(topK: topK).logits(tokens)
    #expect(difference(Array(logits.suffix(8)), try golden.rows("logits_last8_k\(topK)")) <= 1e-4)
    let expected = try golden.integers("argmax_k\(topK)")
    #expect(zip(logits, expected).allSatisfy { argmax($0) == $1 })
  }

  @Test(arguments: ["portable", "avx2", "avx512", "amx"])
  func everyInstructionSetAgrees(isa: String) throws {
    let logits = try Toy.exact(topK: 64, isa: isa).logits(tokens)
    #expect(difference(Array(logits.suffix(8)), try golden.rows("logits_last8_k64")) <= 1e-4)
  }

  /// Selection cuts the context to a quarter: the logits must not be the dense ones.
  @Test func selectionTakesPart() throws {
    let logits = try Toy.exact(topK: 64).logits(tokens)
    #expect(difference(Array(logits.suffix(8)), try golden.rows("logits_last8_k512")) > 1e-3)
  }

  @Test(arguments: [1, 7, 64])
  func piecesGiveTheSameLogits(chunk: Int) throws {
    let toy = try Toy.exact(expands: false)
    let ids = Array(tokens.prefix(300))
    #expect(difference(try toy.logits(ids, chunk: chunk), try toy.logits(ids)) == 0)
  }

  /// In fp32, and as models are opened by default: mapped bf16 weights, a bf16 cache, int8 index keys.
  @Test(arguments: ["portable", "avx2", "avx512", "amx"])
  func piecesOnEveryInstructionSet(isa: String) throws {
    let ids = Array(tokens.prefix(120))
    let config = try config(Toy.folder, ["index_topk": 32])
    let exact = try Fixture.exact(Toy.folder.path, config, isa: isa, expands: false)
    #expect(try difference(exact.logits(ids, chunk: 1), exact.logits(ids)) == 0)
    var options = ModelOptions()
    options.mayExpand = false
    let mapped = try Fixture(Toy.folder.path, config, options, isa: isa)
    let whole = try mapped.logits(ids)
    for chunk in [1, 7] { #expect(try difference(mapped.logits(ids, chunk: chunk), whole) == 0) }
  }

  @Test(arguments: [1, 50, 512])
  func stepsGiveTheSameLogits(rows: Int) throws {
    let ids = Array(tokens.prefix(300))
    #expect(difference(try Toy.exact(stepRows: rows, expands: false).logits(ids), try Toy.exact(expands: false).logits(ids)) == 0)
  }

  @Test func threadsGiveTheSameBits() throws {
    let ids = Array(tokens.prefix(200))
    #expect(try Toy.exact(topK: 64, threads: 1).logits(ids) == Toy.exact(topK: 64, threads: 2).logits(ids))
  }

  @Test func prefillThenDecodeIsOneShot() throws {
    let toy = try Toy.exact(expands: false)
    let whole = try toy.logits(Array(tokens.prefix(200)))
    let sequence = try TokenSequence.create(toy.makeCache())
    var logits = [try toy.model.logits([(sequence, Array(tokens.prefix(180)))])[0]]
    for position in 180..<200 { logits += try toy.model.logits([(sequence, [tokens[position]])]) }
    #expect(difference(logits, Array(whole[179...])) == 0)
  }

  /// Three sequences of different lengths in one call, over two calls, with their neighbours and alone.
  @Test func neighboursChangeNothing() throws {
    let toy = try Toy.exact()
    let lengths = [150, 3, 41]
    let cache = try toy.makeCache()
    let together = try lengths.map { _ in try TokenSequence.create(cache) }
    let prompts = lengths.enumerated().map { i, length in Array(tokens[i * 100..<i * 100 + length]) }
    var batched = try toy.model.logits(Array(zip(together, prompts)))
    batched += try toy.model.logits(together.enumerated().map { i, sequence in (sequence, [tokens[400 + i]]) })
    for (i, prompt) in prompts.enumerated() {
      let alone = try TokenSequence.create(cache)
      #expect(difference(try toy.model.logits([(alone, prompt)])[0], batched[i]) == 0)
      #expect(difference(try toy.model.logits([(alone, [tokens[400 + i]])])[0], batched[3 + i]) == 0)
    }
  }

  /// Mapped bf16 weights, a bf16 cache, int8 index keys: the default, against the fp32 golden logits. Measured: all 512
  /// argmaxes, and 0.8 % of the largest logit.
  @Test func theDefaultIsClose() throws {
    let logits = try Fixture(Toy.folder.path, config(Toy.folder, ["index_topk": 64])).logits(tokens)
    let expected = try golden.integers("argmax_k64")
    let same = zip(logits, expected).filter { argmax($0) == $1 }.count
    let worst = difference(Array(logits.suffix(8)), try golden.rows("logits_last8_k64"))
    #expect(same >= 500)
    #expect(worst < 0.1)
  }
}
