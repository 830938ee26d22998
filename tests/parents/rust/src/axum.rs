//! axum on tokio's threads, with reqwest, and Redis through deadpool.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::Router;
use deadpool_redis::redis::AsyncCommands;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{interval, sleep};

struct Job {
    path: String,
    done: oneshot::Sender<Result<String, reqwest::Error>>,
}

struct App {
    backend: String,
    client: reqwest::Client,
    redis: deadpool_redis::Pool,
    jobs: mpsc::Sender<Job>,
}

impl App {
    async fn call(&self, path: &str) -> Result<String, reqwest::Error> {
        let url = format!("{}{path}", self.backend);
        self.client.get(url).send().await?.text().await
    }
}

struct Failure(anyhow::Error);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.into())
    }
}

type Answer = Result<String, Failure>;

#[derive(Deserialize)]
struct Request {
    id: u64,
}

impl Request {
    fn call(&self) -> String {
        format!("/call?id={}", self.id)
    }
}

async fn at_once(State(app): State<Arc<App>>, Query(request): Query<Request>) -> Answer {
    Ok(app.call(&request.call()).await?)
}

async fn after_sleep(State(app): State<Arc<App>>, Query(request): Query<Request>) -> Answer {
    sleep(Duration::from_millis(10)).await;
    Ok(app.call(&request.call()).await?)
}

async fn database(State(app): State<Arc<App>>, Query(request): Query<Request>) -> Answer {
    let mut connection = app.redis.get().await?;
    let _: Option<String> = connection.get("visits").await?;
    drop(connection);
    Ok(app.call(&request.call()).await?)
}

async fn two(State(app): State<Arc<App>>, Query(request): Query<Request>) -> Answer {
    let (first, second) = (format!("{}&n=1", request.call()), format!("{}&n=2", request.call()));
    let (first, second) = tokio::try_join!(app.call(&first), app.call(&second))?;
    Ok(first + &second)
}

async fn pool(State(app): State<Arc<App>>, Query(request): Query<Request>) -> Answer {
    let (done, answer) = oneshot::channel();
    app.jobs.send(Job { path: request.call(), done }).await?;
    Ok(answer.await??)
}

async fn after(State(app): State<Arc<App>>, Query(request): Query<Request>) -> Answer {
    tokio::spawn(async move {
        sleep(Duration::from_millis(request.id % 11)).await;
        if let Err(error) = app.call(&request.call()).await {
            eprintln!("{error}");
        }
    });
    Ok("ok".to_string())
}

async fn body(State(app): State<Arc<App>>, Query(request): Query<Request>, _: Bytes) -> Answer {
    Ok(app.call(&request.call()).await?)
}

/// Work that requests hand over: four tasks take it in turn.
fn start_workers(app: &Arc<App>, jobs: mpsc::Receiver<Job>) {
    let jobs = Arc::new(tokio::sync::Mutex::new(jobs));
    for _ in 0..4 {
        let (app, jobs) = (app.clone(), jobs.clone());
        tokio::spawn(async move {
            loop {
                let next = jobs.lock().await.recv().await;
                let Some(job) = next else { return };
                let _ = job.done.send(app.call(&job.path).await);
            }
        });
    }
}

fn start_poller(app: &Arc<App>) {
    let app = app.clone();
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(20));
        for number in 0.. {
            ticks.tick().await;
            if let Err(error) = app.call(&format!("/poll?id={number}")).await {
                eprintln!("{error}");
            }
        }
    });
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let redis = format!("redis://127.0.0.1:{}", env::var("REDIS_PORT")?);
    let mut config = deadpool_redis::Config::from_url(redis);
    config.pool = Some(deadpool_redis::PoolConfig::new(4));
    let (jobs, waiting) = mpsc::channel(1024);
    let app = Arc::new(App {
        backend: env::var("BACKEND")?,
        client: reqwest::Client::new(),
        redis: config.create_pool(Some(deadpool_redis::Runtime::Tokio1))?,
        jobs,
    });
    start_workers(&app, waiting);
    if env::var("POLLER").is_ok_and(|set| !set.is_empty()) {
        start_poller(&app);
    }
    let router = Router::new()
        .route("/at-once", get(at_once))
        .route("/sleep", get(after_sleep))
        .route("/database", get(database))
        .route("/two", get(two))
        .route("/pool", get(pool))
        .route("/after", get(after))
        .route("/body", post(body))
        .with_state(app);
    let port: u16 = env::var("PORT")?.parse()?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, router).await?;
    Ok(())
}
