//! Regular expressions, as the C library has them (regex(7)).

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr;

/// A POSIX extended regular expression.
pub struct Pattern(libc::regex_t);

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pattern").finish_non_exhaustive()
    }
}

impl Pattern {
    /// The expression `text` (regcomp(3)).
    ///
    /// # Errors
    /// The C library's words for what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = CString::new(text).map_err(|_| "it holds a NUL byte".to_owned())?;
        let mut compiled = MaybeUninit::<libc::regex_t>::zeroed();
        let flags = libc::REG_EXTENDED | libc::REG_NOSUB;
        // SAFETY: `compiled` has room for one regex_t, and `text` is a C string; both outlive the call.
        let code = unsafe { libc::regcomp(compiled.as_mut_ptr(), text.as_ptr(), flags) };
        if code == 0 {
            // SAFETY: regcomp succeeded, so it has filled the structure in.
            return Ok(Self(unsafe { compiled.assume_init() }));
        }
        let mut words = [0_u8; 256];
        // SAFETY: the structure is the one that regcomp was given, and the buffer has the length that is told.
        unsafe { libc::regerror(code, compiled.as_ptr(), words.as_mut_ptr().cast(), words.len()) };
        let end = words.iter().position(|byte| *byte == 0).unwrap_or(words.len());
        Err(String::from_utf8_lossy(&words[..end]).to_lowercase())
    }

    /// Whether some part of `text` matches (regexec(3)).
    pub fn matches(&self, text: &str) -> bool {
        let Ok(text) = CString::new(text) else { return false };
        // SAFETY: the expression is compiled, and no place for parts of the text is asked for (`REG_NOSUB`).
        unsafe { libc::regexec(&raw const self.0, text.as_ptr(), 0, ptr::null_mut(), 0) == 0 }
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // SAFETY: it was compiled and is freed once.
        unsafe { libc::regfree(&raw mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_text_matches_an_extended_expression() {
        let pattern = Pattern::new("^web-(a|b)+$").unwrap();
        assert!(pattern.matches("web-ab") && !pattern.matches("web-abc") && !pattern.matches("xweb-a"));
        assert!(Pattern::new("test-*").unwrap().matches("my-test"), "the dash may be missing");
    }

    #[test]
    fn what_is_no_expression_is_told() {
        assert!(!Pattern::new("(").unwrap_err().is_empty());
    }
}
