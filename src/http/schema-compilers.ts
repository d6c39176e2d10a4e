/**
 * What becomes of the schemas of routes: validators and serializers. Each is built when a request first needs it, for to build all of them takes
 * more than half of the time of a start. Tests ask every route.
 */
import { AjvCompiler } from '@fastify/ajv-compiler'
import { SerializerSelector } from '@fastify/fast-json-stringify-compiler'

const ajvCompilers = AjvCompiler()
const serializers = SerializerSelector()

type ValidatorOf = ReturnType<typeof ajvCompilers>
type Validator = ReturnType<ValidatorOf>

export const buildValidator: typeof ajvCompilers = (sharedSchemas, options) => {
  const validatorsThat = (coerceTypes: false | 'array') =>
    once(() =>
      ajvCompilers(sharedSchemas, {
        customOptions: { removeAdditional: false, useDefaults: true, allErrors: false, coerceTypes },
        plugins: options?.plugins,
      }),
    )
  // What is in a URL or a header is text, and becomes what the schema wants; what is in a body has a type already, and "5" is not 5.
  const coercing = validatorsThat('array')
  const strict = validatorsThat(false)
  // Fastify hands over { schema, method, url, httpPart }.
  const validatorOf: ValidatorOf = (route) => {
    const isBody = typeof route === 'object' && 'httpPart' in route && route.httpPart === 'body'
    const built = once(() => (isBody ? strict : coercing)()(route))
    const validate = (data: unknown) => {
      const check = built()
      const isValid = check(data)
      lazy.errors = check.errors
      return isValid
    }
    // Of the rest that a validator of Ajv has, Fastify reads nothing.
    const lazy = validate as Validator
    return lazy
  }
  return validatorOf
}

export const buildSerializer: typeof serializers = (sharedSchemas, options) => {
  const compiler = once(() => serializers(sharedSchemas, options))
  return (route) => {
    const built = once(() => compiler()(route))
    return (answer) => built()(answer)
  }
}

function once<T>(build: () => T): () => T {
  let built: T | undefined
  return () => {
    built ??= build()
    return built
  }
}
