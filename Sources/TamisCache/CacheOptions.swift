// What a cache holds: the checked choices of tamis_cache_options. Refuses combinations that no operator reads.

package import TamisOperators
import TamisRuntime

package struct CacheOptions: Sendable {
  package var layers = 1
  package var kvHeads = 1
  package var keyDim = 576
  package var valueDim = 512
  /// False: a value is the first valueDim numbers of its key.
  package var ownValues = false
  package var indexDim = 128
  package var kvDType = DType.bf16
  /// nil: no index keys.
  package var indexDType: DType? = .i8
  package var pageTokens = 64
  /// 0: no limit.
  package var maxTokens: UInt64 = 0

  package init() {}

  /// Heads and dims stay far inside int32 arithmetic, as in the operators.
  private static let largest = 1 << 16

  func check() throws(TamisError) {
    guard layers >= 1, kvHeads >= 1, keyDim >= 1, valueDim >= 1, indexDim >= 1 else {
      throw TamisError(.argument, "options: layers, kv_heads and dims are at least 1")
    }
    guard max(kvHeads, keyDim, valueDim, indexDim) <= Self.largest else {
      throw TamisError(.unsupported, "options: more than \(Self.largest) heads or dims")
    }
    guard pageTokens >= 16, pageTokens % 16 == 0 else {
      throw TamisError(.argument, "options: page_tokens is \(pageTokens), expected a multiple of 16")
    }
    guard maxTokens == 0 || maxTokens >= UInt64(pageTokens) else {
      throw TamisError(.argument, "options: max_tokens is \(maxTokens), less than a page of \(pageTokens)")
    }
    guard ownValues || valueDim <= keyDim else {
      throw TamisError(.argument, "options: value_dim \(valueDim) is more than key_dim \(keyDim), and no own_values")
    }
    try checkDTypes()
  }

  private func checkDTypes() throws(TamisError) {
    switch kvDType {
    case .f32, .f16, .bf16: break
    case .mla656:
      guard kvHeads == 1, keyDim == MLA656.dim, valueDim == MLA656.latent, !ownValues else {
        throw TamisError(.argument, "options: MLA656 has kv_heads 1, key_dim 576, value_dim 512 and no own_values")
      }
    default: throw TamisError(.argument, "options: kv_dtype \(kvDType.name) is not F32, F16, BF16 or MLA656")
    }
    switch indexDType {
    case nil, .f32, .f16, .bf16, .i8: break
    case .index132:
      guard indexDim == Index132.dim else {
        throw TamisError(.argument, "options: INDEX132 has index_dim 128, not \(indexDim)")
      }
    case .some(let dtype):
      throw TamisError(.argument, "options: index_dtype \(dtype.name) is not F32, F16, BF16, I8 or INDEX132")
    }
  }
}
