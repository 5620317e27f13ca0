// A checkpoint directory as a whole: the decoder, the tokenizer where there is one, and the tokens that begin and end
// a text. It refuses text from a directory without a tokenizer that it can use; what the files hold is checked by those who read
// them.

package import TamisFormats
package import TamisRuntime

package final class TextModel: Sendable {
  package let context: Context
  package let decoder: Model
  /// Bytes of the checkpoint's files.
  package let mappedBytes: Int
  package let beginToken: Int32?
  /// Each of them ends a text.
  package let endTokens: [Int32]
  private let tokenizer: Tokenizer?
  /// Why there is no tokenizer.
  private let silence: TamisError

  package init(directory: String, _ context: Context, _ options: ModelOptions) throws(TamisError) {
    self.context = context
    let document = try JSONDocument(path: "\(directory)/config.json", context)
    let config = try ModelConfig(document.root)
    let text = "\(directory)/tokenizer.json"
    (tokenizer, silence) = try TextModel.tokenizer(text, context)
    (beginToken, endTokens) = try TextModel.marks(document.root, directory: directory, config, context)
    let checkpoint = try Checkpoint(directory: directory, context)
    mappedBytes = checkpoint.mappedBytes
    decoder = try Model(config, checkpoint, context, options)
  }

  package func requireTokenizer() throws(TamisError) -> Tokenizer {
    guard let tokenizer else { throw silence }
    return tokenizer
  }

  /// A tokenizer of an unsupported kind is as good as none: ids can still be evaluated.
  private static func tokenizer(_ path: String, _ context: Context) throws(TamisError) -> (Tokenizer?, TamisError) {
    let missing = TamisError(.unsupported, "the checkpoint has no tokenizer.json")
    guard File.exists(path) else { return (nil, missing) }
    do {
      return (try Tokenizer(path: path, context), missing)
    } catch {
      guard error.status == .unsupported else { throw error }
      return (nil, error)
    }
  }

  /// Ids that have a text; 0: no tokenizer.
  package var tokenCount: Int { tokenizer?.vocabularySize ?? 0 }

  // MARK: Begin and end

  /// generation_config.json, where it is, speaks for config.json.
  private static func marks(
    _ config: JSONValue, directory: String, _ shape: ModelConfig, _ context: Context
  ) throws(TamisError) -> (begin: Int32?, end: [Int32]) {
    var sources = [config]
    let path = "\(directory)/generation_config.json"
    if File.exists(path) { sources.insert(try JSONDocument(path: path, context).root, at: 0) }
    var begin: Int32?
    var end: [Int32] = []
    for source in sources {
      if begin == nil, let value = source.member("bos_token_id") { begin = try mark(value, shape) }
      guard end.isEmpty, let value = source.member("eos_token_id") else { continue }
      if value.isArray {
        for element in value.elements.prefix(64) {
          if let id = try mark(element, shape) { end.append(id) }
        }
      } else if let id = try mark(value, shape) {
        end.append(id)
      }
    }
    return (begin, end)
  }

  /// nil: none (null, or -1 as some files write it).
  private static func mark(_ value: JSONValue, _ shape: ModelConfig) throws(TamisError) -> Int32? {
    if value.isNull { return nil }
    let id = try value.integer(in: -1...shape.vocabulary &- 1)
    return id < 0 ? nil : Int32(truncatingIfNeeded: id)
  }
}
