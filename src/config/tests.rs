//! What a configuration may say, and what is said about one that is wrong.

use super::*;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("/etc/lifeboat/config.toml"))
}

fn refused(text: &str) -> Error {
    let error = parse(text).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(!format!("{error:?}").contains("canary"), "a value is repeated: {error:?}");
    error
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    let error = refused("[[system]]\nname = \"a\"\nrepositry = { url = \"/srv\", password_file = \"/p\" }\n");
    assert_eq!(error.message, "line 3 of /etc/lifeboat/config.toml has an unknown key \"repositry\"");
    assert_eq!(error.hints[0], "Did you mean repository?");
    let error = refused("[[system]]\nname = \"a\"\nrepository = { url = \"/srv\", password-file = \"/p\" }\n");
    assert_eq!(error.hints[0], "Did you mean password_file?");
    let error = refused("[[systems]]\nname = \"a\"\n");
    assert_eq!(error.hints[0], "Did you mean system?");
    let error = refused("[[system]]\nname = \"a\"\ncolour = \"red\"\n");
    assert!(error.hints[0].starts_with("A system has the keys name, environment"), "{error:?}");
}

#[test]
fn no_secret_may_be_in_the_file_and_none_is_repeated() {
    for line in [
        "password = \"canary\"",
        "pasword = \"canary\"",
        "repository = { url = \"/srv\", password = \"canary\" }",
        "repository = { url = \"/srv\", passphrase = \"canary\" }",
        "repository = { url = \"rest:https://me:canary@store/\", password_file = \"/p\" }",
        "database = \"postgresql://app:canary@db/shop\"",
        "database = \"postgresql://app:ca/canary@db/shop\"",
        "database = \"postgresql://app@db/shop?password=canary\"",
        "database = \"host=db password = canary\"",
        "database = \"host=db sslpassword=canary\"",
    ] {
        let error = refused(&format!("[[system]]\nname = \"a\"\n{line}\n"));
        assert!(error.message.starts_with("line 3 of "), "{error:?}");
        assert!(error.message.contains("password") || error.message.contains("secret"), "{error:?}");
        assert!(!error.hints.is_empty());
    }
    for line in ["database = \"host=db passfile=/etc/pass\"", "database = \"postgresql://app@db:5432/shop\""] {
        parse(&format!("[[system]]\nname = \"a\"\n{line}\n")).unwrap();
    }
}

#[test]
fn what_is_not_toml_or_of_the_wrong_kind_is_said_with_its_line_and_without_its_value() {
    let error = refused("[[system]]\nname = \"a\npassword_canary\n");
    assert!(error.message.starts_with("line 2 of ") && error.message.ends_with("is not TOML"), "{error:?}");
    assert!(refused("[[system]]\nname = \"a\"\ndatabase = canary\n").message.ends_with("is not TOML"));
    assert!(refused("[[system]]\nname = \"a\"\nname = \"canary\"\n").message.starts_with("line 3 of "));
    let wrong = [
        ("name = 1", "gives name something that is not text"),
        ("name = \" \"", "leaves name empty"),
        ("name = \"a\\nb\"", "gives name more than one line of plain text"),
        ("name = \"a\"\ntags = \"canary\"", "gives tags something that is not a list of text"),
        ("name = \"a\"\ntags = [1]", "gives tags something that is not a list of text"),
        ("name = \"a\"\nrepository = \"canary\"", "gives repository something that is not a table"),
        ("name = \"a\"\nrepository = { password_file = \"/p\" }", "gives a repository without a url"),
        ("name = \"a\"\nrepository = { url = \"/srv\" }", "gives a repository without its password"),
        (
            "name = \"a\"\nrepository = { url = \"/srv\", password_file = \"/p\", password_command = \"c\" }",
            "gives both password_file and password_command",
        ),
        ("name = \"a\"\nrpo = \"canary\"", "has a duration that cannot be read"),
        ("name = \"a\"\nenvironment = \"canary\"", "has an environment that is not known"),
        ("host = \"a\"", "starts a system without a name"),
    ];
    for (text, what) in wrong {
        let error = refused(&format!("[[system]]\n{text}\n"));
        assert!(error.message.ends_with(what), "{text}: {error:?}");
    }
    assert!(refused("system = 1").message.contains("not a list of tables"));
}

#[test]
fn two_systems_of_one_name_are_refused() {
    let error = refused("[[system]]\nname = \"a\"\n[[system]]\nhost = \"h\"\nname = \"a\"\n");
    assert_eq!(error.message, "line 5 of /etc/lifeboat/config.toml names system \"a\" again");
}

#[test]
fn a_named_file_has_to_be_there_and_nobody_else_may_write_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let error = Config::load(Some(&file)).unwrap_err();
    assert!(error.message.starts_with("cannot read the configuration "), "{error:?}");
    assert!(Config::load(Some(folder.path())).is_err(), "a folder is not a file");
    std::fs::write(&file, "[[system]]\nname = \"a\"\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(Config::load(Some(&file)).unwrap_err().message.starts_with("anybody may write to "));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(Config::load(Some(&file)).unwrap().systems, [System::named("a")]);
}

#[test]
fn without_systems_the_environment_describes_one() {
    assert_eq!(parse("# nothing yet\n").unwrap().systems, [System::named("default")]);
}

#[test]
fn durations_are_read_as_people_write_them() {
    let seconds = |text| parse_duration(text).map(|duration| duration.as_secs());
    assert_eq!(seconds("24h"), Some(86400));
    assert_eq!(seconds("1h 30min"), Some(5400));
    assert_eq!(seconds("2w1d"), Some(15 * 86400));
    assert_eq!(seconds("90 s"), Some(90));
    for wrong in ["", "0h", "24", "h", "-1h", "1.5h", "1y", "99999999999999999999h", "9999999999999999999w"] {
        assert_eq!(seconds(wrong), None, "{wrong}");
    }
}

#[test]
fn the_commented_example_is_read() {
    let text = include_str!("../../assets/config.toml");
    let config = parse(text).unwrap();
    let [shop, archive] = &config.systems[..] else { panic!("{config:?}") };
    assert_eq!(shop.rpo, Some(Duration::from_hours(24)));
    assert_eq!(shop.environment, Environment::Production);
    let repository = shop.repository.as_ref().unwrap();
    assert_eq!(repository.password_file.as_deref(), Some(Path::new("/etc/lifeboat/shop.password")));
    assert_eq!(archive.environment, Environment::Staging);
    assert!(archive.repository.as_ref().unwrap().password_command.is_some());
    assert_eq!(shop.checks, [Check { query: "SELECT count(*) FROM public.orders".into(), at_least: 45678 }]);
    assert_eq!(shop.tablespaces, [(16384, "fast".to_owned())].into());
    for key in SYSTEM.iter().chain(REPOSITORY).chain(CHECK) {
        let shown = text.contains(&format!("{key} =")) || text.contains(&format!("[[system.{key}]]"));
        assert!(shown, "the example does not show {key}");
    }
}

#[test]
fn a_check_has_a_query_and_a_whole_number() {
    let check = |lines: &str| parse(&format!("[[system]]\nname = \"a\"\n[[system.check]]\n{lines}\n"));
    assert_eq!(check("query = \"select 1\"\nat_least = -1").unwrap().systems[0].checks[0].at_least, -1);
    for wrong in
        ["query = \"select 1\"", "at_least = 1", "query = \"select 1\"\nat_least = \"1\"", "query = 1\nat_least = 1"]
    {
        let error = check(wrong).unwrap_err();
        assert!(error.message.contains("line") && !error.hints.is_empty(), "{wrong}: {error:?}");
    }
}

#[test]
fn a_tablespace_is_a_number_and_a_folder() {
    let given = |value: &str| parse(&format!("[[system]]\nname = \"a\"\ntablespaces = {value}\n"));
    assert_eq!(given("[\"1=/a=b\"]").unwrap().systems[0].tablespaces, [(1, "/a=b".to_owned())].into());
    for wrong in ["[\"fast\"]", "[\"fast=/a\"]", "[\"-1=/a\"]", "\"1=/a\"", "[1]"] {
        let error = given(wrong).unwrap_err();
        assert!(error.message.contains("line") && !error.hints.is_empty(), "{wrong}: {error:?}");
    }
}
