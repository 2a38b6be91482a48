//! Which of the agents that are up a session gets.
use crate::protocol::connect::Selection;

/// An agent as far as the choice goes.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub slug: &'a str,
    pub country: &'a str,
    /// Sessions that it has.
    pub load: u64,
}

/// Picks one: of the slugs that `selection` names each with the same chance, then the less loaded of two at random.
/// Without named slugs the two are any that fit. `random` gives a number below its argument.
///
/// Two at random and not the least loaded of all: many workers that look at the same counts at the same time would all
/// take that one.
pub fn pick(
    candidates: &[Candidate<'_>],
    selection: &Selection,
    mut random: impl FnMut(usize) -> usize,
) -> Option<usize> {
    let mut fit: Vec<usize> =
        (0..candidates.len()).filter(|at| selection.matches(candidates[*at].slug, candidates[*at].country)).collect();
    if selection.agents.is_some() {
        let mut slugs: Vec<&str> = fit.iter().map(|at| candidates[*at].slug).collect();
        slugs.sort_unstable_by_key(|slug| slug.to_ascii_lowercase());
        slugs.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
        let slug = *slugs.get(random(slugs.len().max(1)))?;
        fit.retain(|at| candidates[*at].slug.eq_ignore_ascii_case(slug));
    }
    match fit[..] {
        [] => None,
        [only] => Some(only),
        _ => {
            let first = random(fit.len());
            // Any other than the first.
            let second = (first + 1 + random(fit.len() - 1)) % fit.len();
            [fit[first], fit[second]].into_iter().min_by_key(|at| candidates[*at].load)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(agents: &[(&'static str, &'static str, u64)]) -> Vec<Candidate<'static>> {
        agents.iter().map(|&(slug, country, load)| Candidate { slug, country, load }).collect()
    }

    /// How often each is picked.
    fn counts(candidates: &[Candidate<'_>], selection: &Selection, picks: usize) -> Vec<usize> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut counts = vec![0; candidates.len()];
        for _ in 0..picks {
            if let Some(at) = pick(candidates, selection, |below| random.usize(..below)) {
                counts[at] += 1;
            }
        }
        counts
    }

    #[test]
    fn only_agents_that_fit_are_picked() {
        let agents = candidates(&[("de1", "DE", 0), ("de2", "DE", 0), ("us1", "US", 0)]);
        for (geo, agent, fits) in [
            ("", "", vec![0, 1, 2]),
            ("de", "", vec![0, 1]),
            ("US, de ,", "", vec![0, 1, 2]),
            ("XX", "", vec![]),
            ("", "US1", vec![2]),
            ("", "de1,us1", vec![0, 2]),
            ("DE", "de1,us1", vec![0]),
            ("US", "de1", vec![]),
        ] {
            let selection = Selection::new(Some(geo), Some(agent));
            let picked: Vec<usize> = counts(&agents, &selection, 200)
                .iter()
                .enumerate()
                .filter(|(_, n)| **n > 0)
                .map(|(at, _)| at)
                .collect();
            assert_eq!(picked, fits, "{geo:?} {agent:?}");
        }
    }

    #[test]
    fn named_slugs_have_the_same_chance_however_many_agents_they_have_and_whatever_their_load() {
        let agents = candidates(&[("a", "DE", 900), ("b", "DE", 0), ("b", "DE", 0), ("b", "DE", 0), ("c", "DE", 5)]);
        let picks = 30_000;
        let counts = counts(&agents, &Selection::new(None, Some("a,b,c")), picks);
        let slugs = [counts[0], counts[1] + counts[2] + counts[3], counts[4]];
        let expected = picks as f64 / 3.0;
        let chi_square: f64 = slugs.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
        // Two degrees of freedom; one run in 10,000 of a fair pick is beyond this.
        assert!(chi_square < 18.4, "{slugs:?}: {chi_square}");
    }

    #[test]
    fn the_less_loaded_of_two_is_picked() {
        let agents = candidates(&[("a", "DE", 5), ("b", "DE", 4)]);
        assert_eq!(counts(&agents, &Selection::default(), 50), [0, 50]);
        let agents = candidates(&[("a", "DE", 9), ("b", "DE", 1), ("c", "DE", 0)]);
        let counts = counts(&agents, &Selection::default(), 3_000);
        assert_eq!(counts[0], 0, "the most loaded one of three is never the less loaded of two");
        assert!(counts[1] > 800 && counts[2] > 1_800, "{counts:?}");
    }

    #[test]
    fn equals_are_picked_evenly() {
        let agents = candidates(&[("a", "DE", 1), ("b", "DE", 1), ("c", "DE", 1), ("d", "DE", 1)]);
        let picks = 40_000;
        let counts = counts(&agents, &Selection::default(), picks);
        let expected = picks as f64 / 4.0;
        let chi_square: f64 = counts.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
        assert!(chi_square < 21.1, "{counts:?}: {chi_square}");
    }
}
