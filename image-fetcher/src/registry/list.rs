//! Lists: the tags of a repository, and repositories by a word in their name.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::HeaderMap;
use ureq::http::header::LINK;

use super::client::{Ask, Client};
use super::fetch::{read, success};
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
    let response = success(client, client.ask(&ask)?)?;
    let results: Results = parse(&read(response)?, "the list of results")?;
    Ok(results.results.into_iter().map(|r| r.name).collect())
}

fn in_catalog(client: &Client<'_>, word: &str) -> Result<Vec<String>> {
    let all = pages(client, "/_catalog?n=1000".to_owned(), "registry:catalog:*", |page: Catalog| {
        page.repositories.unwrap_or_default()
    });
    Ok(all?.into_iter().filter(|name| name.contains(word)).collect())
}

/// Asks the registry's own address: what a mirror has is not all.
fn with_client<T>(
    reference: &Reference,
    settings: &Settings,
    ask: impl FnOnce(&Client<'_>) -> Result<T>,
) -> Result<T> {
    let stop = Stop::default();
    let watch = Watch { report: &Silent, stop: &stop };
    let clients = clients(reference, settings, watch)?;
    let own = clients.iter().find(|c| c.endpoint().mirror_of.is_none());
    ask(own.ok_or_else(|| Error::new(Kind::NotFound, "the registry has no address"))?)
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
        let response = success(client, client.ask(&Ask::get(path, scope.to_owned()))?)?;
        let next = next(response.headers(), &client.endpoint().origin);
        all.extend(names(parse(&read(response)?, "the list")?).into_iter().filter(|name| is_plain(name)));
        match next {
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

/// The next page, where `Link: <ADDRESS>; rel="next"` names one of the same registry.
fn next(headers: &HeaderMap, origin: &Origin) -> Option<String> {
    let link = headers.get(LINK)?.to_str().ok()?;
    let (address, rest) = link.strip_prefix('<')?.split_once('>')?;
    if !rest.contains("next") {
        return None;
    }
    if address.starts_with('/') {
        return Some(format!("{origin}{address}"));
    }
    let uri = address.parse().ok()?;
    (Origin::of(&uri).ok()? == *origin).then(|| address.to_owned())
}
