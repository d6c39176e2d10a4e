/** If-None-Match: `*`, or a list of tags, weak or strong (RFC 9110, section 13.1.2). @param etag with its quotes */
export function isKnown(header: string | undefined, etag: string): boolean {
  return header !== undefined && (header.trim() === '*' || header.split(',').some((tag) => tag.trim().replace(/^W\//, '') === etag))
}
