// Re-positioning with a model's own rotary dims: latents are turned in pairs (2i, 2i + 1), index keys as their indexer
// pairs them, and no Hadamard rotation lies over them. Refuses caches of another shape.

package import TamisCache
package import TamisRuntime

extension Model {
  /// Appends rows of a document, turned to their new positions (TokenSequence.splice).
  package func splice(
    _ sequence: TokenSequence, _ document: TokenSequence, first: Int64, count: Int64
  ) throws(TamisError) {
    let options = sequence.cache.options
    guard options.layers == config.layers, options.kvHeads == 1, options.keyDim == config.keyDim, !options.ownValues,
      options.indexDType == nil || options.indexDim == config.index?.dim
    else { throw TamisError(.argument, "seq: its cache does not fit the model (tamis_model_cache_options does)") }
    let frequencies = config.rotary.frequencies(dims: config.rope)
    let result = frequencies.withUnsafeBufferPointer { frequencies -> TamisError? in
      do throws(TamisError) {
        try sequence.splice(
          document, first: first, count: count,
          Rotary(
            frequencies: frequencies, key: RotaryDims(first: config.latent, interleaved: true),
            indexKey: RotaryDims(first: 0, interleaved: config.index?.interleaved ?? false), hadamard: false))
        return nil
      } catch {
        return error
      }
    }
    if let result { throw result }
  }
}
