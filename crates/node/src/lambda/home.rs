//! Where this node pretends to be: the region and account in the ARNs it gives out.

use model::FunctionName;

/// The region and account of a node, as clients see them. What clients send is not held against it: an ARN of any region and
/// account names the function of that name on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    pub region: String,
    pub account: String,
}

impl Default for Home {
    fn default() -> Self {
        Self { region: "us-east-1".to_owned(), account: "000000000000".to_owned() }
    }
}

impl Home {
    /// The unqualified ARN of a function.
    #[must_use]
    pub fn arn(&self, function: &FunctionName) -> String {
        format!("arn:aws:lambda:{}:{}:function:{function}", self.region, self.account)
    }
}
