//! Lists: the tags of a repository, and repositories by a word in their name.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::header::LINK;
use ureq::http::{HeaderMap, Uri};

use super::client::{Ask, Client, resolve};
use super::fetch::whole;
use super::hosts::Origin;
use super::report::{Silent, Stop, Watch};
use super::token::percent;
use super::{Settings, clients};
use crate::error::{Context, Error, Kind, Result};
use crate::image::parse;
use crate::reference::Reference;

/// So many pages of a list are read, a thousand names each.
const PAGE_LIMIT: usize = 100;

#[derive(Deserialize)]
struct Tags {
    // Some registries say null where there are none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

/// What Docker's search of version 1 answers.
#[derive(Deserialize)]
struct Results {
    results: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The tags of a repository, as the registry sorts them.
///
/// # Errors
/// [`Kind::Network`], [`Kind::Denied`], [`Kind::NotFound`].
pub fn tags(repository: &Reference, settings: &Settings) -> Result<Vec<String>> {
    let scope = format!("repository:{}:pull", repository.repository());
    let path = format!("/{}/tags/list?n=1000", repository.repository());
    let listing = || format!("listing the tags of {}/{}", repository.host(), repository.repository());
    with_client(repository, settings, |client| {
        pages(client, path, &scope, |page: Tags| page.tags.unwrap_or_default())
    })
    .context(listing)
}

/// The repositories that have `words` in their name: `WORD` looks at docker.io, `HOST/WORD` elsewhere, by the search that
/// Docker's registries offer, else in the catalogue of all repositories.
///
/// # Errors
/// As [`tags`]; few registries offer either.
pub fn search(words: &str, settings: &Settings) -> Result<Vec<String>> {
    let searching = || format!("searching for {words:?}");
    let named = words.split_once('/').filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost");
    let (host, word) = named.unwrap_or(("docker.io", words));
    // A reference carries the registry; the repository's name doesn't count.
    let reference: Reference = format!("{host}/search/search").parse().context(searching)?;
    let found = with_client(&reference, settings, |client| {
        let by_search = by_search(client, host, word);
        by_search.or_else(|error| in_catalog(client, word).map_err(|_| error))
    });
    let found = found.context(searching)?;
    Ok(found.into_iter().map(|name| format!("{host}/{name}")).collect())
}

/// Docker's search; that of docker.io is at an address of its own.
fn by_search(client: &Client<'_>, host: &str, word: &str) -> Result<Vec<String>> {
    let origin = match host {
        "docker.io" => "https://index.docker.io".to_owned(),
        _ => client.endpoint().origin.to_string(),
    };
    let ask = Ask::get(format!("{origin}/v1/search?n=100&q={}", percent(word)), String::new());
    let results: Results = parse(&whole(client, &ask, client.retries())?.1, "the list of results")?;
    Ok(results.results.into_iter().map(|r| r.name).collect())
}

fn in_catalog(client: &Client<'_>, word: &str) -> Result<Vec<String>> {
    let all = pages(client, "/_catalog?n=1000".to_owned(), "registry:catalog:*", |page: Catalog| {
        page.repositories.unwrap_or_default()
    });
    Ok(all?.into_iter().filter(|name| name.contains(word)).collect())
}

/// Asks the registry's own address, the last where all are mirrors: what a mirror has is not all.
fn with_client<T>(
    reference: &Reference,
    settings: &Settings,
    ask: impl FnOnce(&Client<'_>) -> Result<T>,
) -> Result<T> {
    let stop = Stop::default();
    let watch = Watch { report: &Silent, stop: &stop };
    let clients = clients(reference, settings, watch)?;
    let own = clients.iter().find(|c| c.endpoint().mirror_of.is_none());
    ask(own.or(clients.last()).ok_or_else(|| Error::new(Kind::NotFound, "the registry has no address"))?)
}

/// All names of a list that comes in pages (distribution-spec, "Content Discovery").
fn pages<T: DeserializeOwned>(
    client: &Client<'_>,
    first: String,
    scope: &str,
    names: impl Fn(T) -> Vec<String>,
) -> Result<Vec<String>> {
    let (mut all, mut path) = (Vec::new(), first);
    for _ in 0..PAGE_LIMIT {
        let base = client.address(&path)?;
        let (headers, page) = whole(client, &Ask::get(path, scope.to_owned()), client.retries())?;
        all.extend(names(parse(&page, "the list")?).into_iter().filter(|name| is_plain(name)));
        match next(&headers, &base)? {
            Some(next) => path = next,
            None => return Ok(all),
        }
    }
    Err(Error::new(Kind::Limit, format!("the list has more than {PAGE_LIMIT} pages")))
}

/// Names are printed: what a terminal could take for commands is left out.
fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_graphic())
}

/// The next page, where `Link: <ADDRESS>; rel="next"` names one: an address by itself, or as seen from `base`.
///
/// # Errors
/// [`Kind::Denied`] where it is another registry's: nobody can tell then what the list lacks.
fn next(headers: &HeaderMap, base: &Uri) -> Result<Option<String>> {
    let link = headers.get(LINK).and_then(|link| link.to_str().ok()?.strip_prefix('<')?.split_once('>'));
    let Some((address, _)) = link.filter(|(_, rest)| rest.contains("next")) else { return Ok(None) };
    let address = resolve(address, base)?;
    let (own, found) = (Origin::of(base)?, Origin::of(&address)?);
    if own != found {
        return Err(Error::new(Kind::Denied, format!("the list of {own} goes on at {found}")));
    }
    Ok(Some(address.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_the_registrys_wherever_the_link_is_seen_from() {
        let base: Uri = "https://h.x/v2/a/tags/list?n=2".parse().unwrap();
        let next = |link: &str| {
            let link = format!("<{link}>; rel=\"next\"").parse().unwrap();
            next(&HeaderMap::from_iter([(LINK, link)]), &base)
        };
        for link in ["https://h.x/v2/a/tags/list?last=3", "/v2/a/tags/list?last=3", "list?last=3", "?last=3"]
        {
            assert_eq!(next(link).unwrap().unwrap(), "https://h.x/v2/a/tags/list?last=3", "{link}");
        }
        let error = next("https://evil.x/v2/a/tags/list").unwrap_err().to_string();
        assert_eq!(error, "the list of https://h.x goes on at https://evil.x");
        assert!(super::next(&HeaderMap::new(), &base).unwrap().is_none());
    }
}
